"""Where a job's run is started: a process, a container, a cluster."""
