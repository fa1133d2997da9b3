"""What a sub-network costs, as expressions in its choices, and its layers as data."""
