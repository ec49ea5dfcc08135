"""The server: the same journals, folded by the same code into tables that answer reads fast."""
