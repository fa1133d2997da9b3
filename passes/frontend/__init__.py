"""From a model and example inputs to a graph that is the model: recorded, not traced through proxies.

`recorder` runs the model on meta tensors and notes every torch function; `merging` compares recordings at several
sizes and in both modes, so that sizes and flags are known by their difference; `capture` decides which axes are
dynamic; `fidelity` compares the graph with the model.
"""
