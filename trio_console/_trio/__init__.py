"""Additions to trio that this package needs everywhere: endings, nurseries, Ctrl-C, threads and clocks.

This folder must not know consoles, frames or guests; only `lost` names a guest.
"""
