"""The front door: one file per resource."""
