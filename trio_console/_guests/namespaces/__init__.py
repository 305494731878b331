"""Guests in Linux namespaces of their own, by bubblewrap."""
