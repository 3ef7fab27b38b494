"""The systems that are measured, each a process of its own that does the work it is sent."""
