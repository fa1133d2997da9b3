"""Passes in order, the analysis that they hand on, and what is checked after each."""
