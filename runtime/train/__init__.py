"""Training of a super-network: stages, steps, validation."""
