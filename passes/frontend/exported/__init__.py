"""Programs of `torch.export`: read as models, and made of modules that cannot be recorded."""
