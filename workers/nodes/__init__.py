"""Your nodes: typed async functions, nothing to register."""
