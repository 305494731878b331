"""A console: bytes between the blocking threads of a device and trio's tasks.

It knows nothing of frames; and but for `stream` and `channel`, nothing of trio.
"""
