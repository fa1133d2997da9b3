"""A sub-network as the user's own classes: a copy of the model with its layers cut, instead of a graph."""
