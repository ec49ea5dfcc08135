"""Journals written by each released format version, kept for ever, and the folders that they must give."""
