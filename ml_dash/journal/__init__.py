"""The append-only journal of one experiment: segments, their writer, their reader, and their order."""
