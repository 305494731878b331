"""What people use today for commands in a guest, measured beside this project: asyncssh, OpenSSH and qemu-ga."""
