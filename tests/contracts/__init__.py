"""One suite for each seam, run on everything that stands there."""
