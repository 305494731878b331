"""A console: bytes between the blocking threads of a device and trio's tasks.

This folder must not know frames. Only `stream` and `channel` may import trio.
"""
