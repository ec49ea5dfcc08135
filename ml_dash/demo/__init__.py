"""A real training run that is killed half-way and resumed: what `ml-dash demo` shows."""
