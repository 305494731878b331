"""The command line's two commands: ``relay`` shares a guest, ``exec`` runs one command in a shared one."""
