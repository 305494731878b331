"""File operations of the agent."""
