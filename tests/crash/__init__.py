"""Faults injected into real processes, judged from outside: the rows of the fault matrix."""
