"""Processes in the guest, as `trio.run_process` and `trio.Process` have them."""
