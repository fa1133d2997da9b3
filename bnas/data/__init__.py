"""Models, data and example inputs by name."""
