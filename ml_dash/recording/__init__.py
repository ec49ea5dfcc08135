"""The experiments that this process has open: their sessions, and how they begin and end."""
