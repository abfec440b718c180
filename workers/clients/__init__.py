"""Clients of what is outside: models, the web, each with deadlines and breakers."""
