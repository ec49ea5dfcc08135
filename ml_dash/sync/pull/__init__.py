"""Bring an experiment from a server: download, check, put in place."""
