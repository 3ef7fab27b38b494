"""One file per workload: what work there is, who does it, and which numbers come out."""
