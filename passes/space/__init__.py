"""The search space: widths, blocks, regions and kernels that may change."""
