"""Adapters on disk and on the hub, in this library's format and in those of others."""
