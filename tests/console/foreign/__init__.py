"""A device whose threads are not Python's."""
