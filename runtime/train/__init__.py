"""Training of super-networks: stages, steps, validation."""
