"""The tests; those that share helpers import them by name."""
