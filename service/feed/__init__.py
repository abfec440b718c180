"""Statuses, steps and tokens for whoever listens to an event."""
