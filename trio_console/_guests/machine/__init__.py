"""Virtual machines: what they are made of, kept in a cache, and how they are started and ended."""
