"""Machines that were saved: those of stock, those that users have prepared, and copies of those that run."""
