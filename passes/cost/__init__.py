"""Costs of sub-networks as expressions in their choices, and their layers as data."""
