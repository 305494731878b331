"""What trio keeps to itself and this package needs, and what every coroutine here does the same way."""
