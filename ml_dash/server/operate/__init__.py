"""Work on the stores of a server beside its service: check, sweep, scrub, migrate. One module per verb."""
