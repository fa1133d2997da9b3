"""Models by name: torchvision's models, and its residual networks adapted to the small images of CIFAR."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bnas.passes.errors import BnasError
from bnas.passes.faults import short
from bnas.passes.wording import shown

from .files import torchvision_module

CIFAR = "_cifar10"


class ModelError(BnasError):
    """There is no model with this name, or it does not accept the arguments."""


def named(name: str) -> Callable[..., nn.Module]:
    """Return the factory of torchvision's model `name`, without weights.

    Names such as ``resnet50_cifar10`` are residual networks for images of 32 x 32 (`small_resnet`).

    Raises:
        ModelError: There is no such model; the message has the nearest name. The factory raises it if it fails.
    """
    torchvision = torchvision_module()
    known = torchvision.models.list_models(torchvision.models)
    residual = [one + CIFAR for one in known if "resne" in one]
    if name in residual:
        return _told(name, partial(small_resnet, name.removesuffix(CIFAR)))
    if name in known:
        return _told(name, partial(torchvision.models.get_model, name, weights=None))
    near = difflib.get_close_matches(name, [*known, *residual], n=1)
    own = "; to name your own model, write path/file.py:FACTORY or package.module:FACTORY"
    raise ModelError(f"torchvision has no model {short(name)}" + (f"; did you mean {near[0]!r}?" if near else own))


def small_resnet(name: str, /, num_classes: int = 10, **options: Any) -> nn.Module:
    """Torchvision's residual network `name` whose first convolution is 3 x 3 with stride 1.

    The published configurations of BootstrapNAS name such a ResNet-50 with an accuracy of 93.65 %. That is the accuracy
    of Phan's PyTorch_CIFAR10, which has the same layout, so its weights fit.
    """
    torchvision = torchvision_module()
    model: Any = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    assert isinstance(model, nn.Module)
    return model


def _told(name: str, factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Wrap a factory: wrong arguments and too little memory become a `ModelError`."""

    def made(**options: Any) -> nn.Module:
        try:
            return factory(**options)
        except Exception as error:
            told = f"{name} does not accept the arguments {short(options)}"
            raise ModelError(f"{told}: {shown(str(error) or type(error).__name__, 200)}") from error

    return made
