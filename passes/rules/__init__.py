"""The axis rules of bnas, by operator family; importing this package registers them."""

from . import convolution, normalisation, order, pointwise, pooling, product, recurrent, reduction, selection, shape

__all__ = [
    "convolution",
    "normalisation",
    "order",
    "pointwise",
    "pooling",
    "product",
    "recurrent",
    "reduction",
    "selection",
    "shape",
]
