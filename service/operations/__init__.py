"""What operators do: cancel, replay, the dead letters, and forget."""
