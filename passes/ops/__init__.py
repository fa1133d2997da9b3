"""Operators: one record for each, with everything that bnas knows about it.

`record` says what a record holds, `registry` finds records, `calls` spells graph nodes as calls of operators. Every
other module here is a family of operators: the functions that its records name, and the records at its end.
"""
