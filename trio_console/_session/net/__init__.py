"""Connections made by the guest, as trio streams."""
