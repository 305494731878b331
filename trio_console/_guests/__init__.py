"""The ways to start a guest, and to end it by force."""
