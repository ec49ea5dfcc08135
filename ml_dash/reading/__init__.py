"""Experiments for readers: found, opened at any time, checked."""
