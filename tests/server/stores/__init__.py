"""What only one implementation of a seam can show."""
