"""What a sub-network must compute, by the original model's own forward."""
