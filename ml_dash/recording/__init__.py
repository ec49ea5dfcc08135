"""The experiments that this process has open: their sessions, from open to close."""
