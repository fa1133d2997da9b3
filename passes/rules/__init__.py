"""The axis rules of bnas, by operator family; importing this package registers them."""

from . import convolution, normalisation, pointwise, pooling, reduction, shape

__all__ = ["convolution", "normalisation", "pointwise", "pooling", "reduction", "shape"]
