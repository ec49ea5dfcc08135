"""Projections of a journal: the documented folder, and the same content in memory."""
