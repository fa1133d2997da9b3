"""The plan of a run: a budget of time, measured speeds, and the forecast of what follows."""
