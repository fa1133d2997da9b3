"""The report of a run: one HTML page that needs no network, with every plot as a picture and as a table."""
