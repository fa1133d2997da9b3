"""What may change in a model: widths, blocks, regions and kernels, and the space of all choices."""
