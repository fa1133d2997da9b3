"""Networks for targets that convert modules, and how far what they compute is off."""

import copy

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from bnas.runtime import Network


def small() -> tuple[nn.Module, Tensor]:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8 * 8 * 8, 10)), torch.randn(2, 3, 16, 16)


def mobile() -> tuple[nn.Module, Tensor]:
    return mobilenet_v2(weights=None), torch.randn(1, 3, 64, 64)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(1, 16, 32)


def network(module: nn.Module, *example: Tensor) -> Network:
    """Its batch norms have statistics of its activations: without them a signal dies out in random layers."""
    for norm in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        module.train()(*(torch.cat([one, one.flip(0) + 0.1]) for one in example))
    return Network("net", b"", ModelProto(), module.eval(), example)


def feed(*example: Tensor) -> dict[str, np.ndarray]:
    return {f"input{index}": one.numpy() for index, one in enumerate(example)}


def error(net: Network, found: np.ndarray) -> float:
    """How far outputs are from those in float64, in units of how far PyTorch's in float32 are.

    Ten is allowed: a runtime computes in float32 too, but adds up in another order and folds batch norms into
    convolutions. Found were 0.9 to 2.7; PyTorch itself is off by 7e-6 of the largest output after 50 layers.
    """
    with torch.no_grad():
        own = net.module(*net.example).numpy()
        exact = copy.deepcopy(net.module).double()(*(one.double() for one in net.example)).numpy()
    assert found.shape == exact.shape
    return float(abs(found - exact).max() / max(abs(own - exact).max(), 1e-7 * abs(exact).max()))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else -x


class Rare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)
