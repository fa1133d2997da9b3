"""How long a model takes on this machine: measured and predicted."""
