"""This machine's side of a server: credentials, connection, proof, and bringing data back."""
