"""The server: the same journals, folded by the same code into tables for fast reads."""
