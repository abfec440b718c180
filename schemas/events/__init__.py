"""Your events: one file each, nothing to register."""
