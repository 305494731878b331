"""Hostile clients, commands, users and guests, and what they cannot do to others."""
