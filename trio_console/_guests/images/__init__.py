"""Disk images of trees, OCI layouts and archives of images, made without root. `disk.disk_of` is its door."""
