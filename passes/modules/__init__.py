"""The module form: a sub-network as a copy of the user's model with smaller layers, instead of a graph."""
