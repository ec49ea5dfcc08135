"""The training run behind `ml-dash demo`: real, killed half-way, and resumed."""
