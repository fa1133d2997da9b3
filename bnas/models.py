"""Models by name: torchvision's, and its residual networks for the small images of CIFAR."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bnas.passes.errors import BnasError

CIFAR = "_cifar10"


class ModelError(BnasError):
    """There is no model of a name."""


def named(name: str) -> Callable[..., nn.Module]:
    """The factory of torchvision's model `name`, without weights.

    ``resnet50_cifar10`` and the like are its residual ones for images of 32 x 32 (`small_resnet`).

    Raises:
        ModelError: there is none; gives the nearest name.
    """
    import torchvision

    known = torchvision.models.list_models(torchvision.models)
    residual = [one + CIFAR for one in known if "resne" in one]
    if name in residual:
        return partial(small_resnet, name.removesuffix(CIFAR))
    if name in known:
        return partial(torchvision.models.get_model, name, weights=None)
    near = difflib.get_close_matches(name, [*known, *residual], n=1)
    raise ModelError(f"torchvision has no model {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def small_resnet(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Torchvision's residual network `name` whose first convolution is 3 x 3 with stride 1.

    The published configurations of BootstrapNAS name such a ResNet-50, and its accuracy of 93.65 % is that of Phan's
    PyTorch_CIFAR10, which has this layout: its weights fit.
    """
    import torchvision

    model: Any = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    assert isinstance(model, nn.Module)
    return model
