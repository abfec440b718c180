"""Your pipelines: how nodes are put together, one file each, nothing to register."""
