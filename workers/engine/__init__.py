"""What runs pipelines: consumer, executor, settle, lease, and their supervisor."""
