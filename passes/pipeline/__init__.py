"""The pipeline of passes, the analysis that passes share, and the checks after each pass."""
