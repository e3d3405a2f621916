"""Talking to servers: one server, several of them at once, and what is asked of them. No torch."""
