"""Experiments as readers find them: located, opened at any time, checked."""
