"""Bytes kept safely in files: durable writes, locks, and where the settings say that things are."""
