"""The agent's machine: its console, its start as the first process, its clock."""
