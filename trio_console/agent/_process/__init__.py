"""Processes that the agent runs."""
