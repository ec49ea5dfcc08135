"""The server's HTTP interface: calls, bodies, answers."""
