"""The oracle: the expected results of a sub-network, computed by the original model's own forward."""
