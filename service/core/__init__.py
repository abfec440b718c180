"""The ground floor: what every program needs, whatever it does with events."""
