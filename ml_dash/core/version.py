"""The version of ml-dash, in one place."""

__version__ = "0.1.0"  # hatchling reads it by this form
