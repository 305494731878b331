"""The command line: ``relay`` shares a guest, ``exec`` runs a command in a shared one, ``vm`` sets machines up."""
