"""A virtual machine, as far as the host and the agent in it both know it, and its users."""
