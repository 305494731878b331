"""Files of the guest, as `trio.open_file` and `trio.Path` have them."""
