"""Connections that the agent makes."""
