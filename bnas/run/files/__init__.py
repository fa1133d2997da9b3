"""The files of a run folder: their names, marks, ledger and lock, and whose code a run may import."""
