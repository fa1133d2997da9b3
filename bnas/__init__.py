"""bnas: any pre-trained PyTorch model as a weight-sharing super-network."""
