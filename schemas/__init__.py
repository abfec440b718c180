"""What is said: events and the envelope they come in."""

from schemas.event import Event

__all__ = ["Event"]
