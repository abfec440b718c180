"""Calls of models: each in time, behind a circuit breaker, within the limits, and on record before it is made."""
