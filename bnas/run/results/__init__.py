"""The results of a run: networks delivered as files, measurements, and the verdict in words."""
