"""What runs pipelines: reader, executor, settle, lease, and their supervisor."""
