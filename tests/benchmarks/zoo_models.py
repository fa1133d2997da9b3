"""The models of the zoo by name, with random weights, and what the analysis finds in each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from bnas.passes import Elasticity, analyse, trace
from bnas.passes.oracle.oracle import randomise
from bnas.runtime import SuperNetwork

CLASSIFIERS = tuple(torchvision.models.list_models(module=torchvision.models))
SEGMENTERS = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
DETECTORS = ("fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large")
NAMES = (*CLASSIFIERS, *SEGMENTERS, *DETECTORS)

FINE = Elasticity(width_multipliers=(1.0, 0.75, 0.5, 0.25), min_width=1, divisor=1)
"""Sizes that are no multiples of anything: what is wrong shows sooner."""

TRACED = {"inception_v3": 299, "ssdlite320_mobilenet_v3_large": 320}
"""Side of the square images that a model is traced with, where it is not 224."""
FIXED = (*SEGMENTERS, *DETECTORS, *(name for name in CLASSIFIERS if name.startswith(("vit_", "swin_", "maxvit_"))))
"""Models that run on the traced size only: it stands in their attention, or in what they resize to."""
RUN = {"inception_v3": 96}
"""Side of the images that sub-networks run on, where it is not 64 or fixed: smaller ones are faster."""


class MetaWeights(TorchFunctionMode):
    """While it lasts, ``torch.empty`` makes meta tensors, with which layers begin.

    RegNet computes its widths with tensors, and so cannot be built with ``torch.device("meta")``.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def make_model(name: str, device: str = "cpu") -> nn.Module:
    """The model in evaluation mode, with random weights; of a detector its backbone with the feature pyramid.

    Weights that torchvision sets to zeros (the head of ViT) or to almost nothing (layer scales) become random too:
    mistakes would vanish in them.
    """
    settings: dict[str, Any] = {"weights": None}
    if name in (*SEGMENTERS, *DETECTORS):
        settings["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # a truncated normal distribution, which takes a minute
    torch.manual_seed(0)
    with MetaWeights() if device == "meta" and name.startswith("regnet") else torch.device(device):
        model = torchvision.models.get_model(name, **settings).to(device)
    for parameter in model.parameters() if device != "meta" else ():
        if parameter.ndim > 1 and parameter.min() == parameter.max():
            parameter.data.normal_(0.5, 0.1)
    return (model.backbone if name in DETECTORS else model).eval()


def enliven(model: nn.Module, images: torch.Tensor) -> None:
    """Give norms the statistics of random images: with those of new layers the signal dies out in deep networks."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(images.shape, generator=generator)
    randomise(model, lambda: model(batch), generator)


def traced_input(name: str, device: str = "cpu") -> torch.Tensor:
    """Two images of the size that the model is traced with."""
    return torch.zeros(2, 3, *2 * (TRACED.get(name, 224),), device=device)


def run_input(name: str, device: str = "cpu") -> torch.Tensor:
    """Two random images of the size that sub-networks are run on."""
    side = TRACED.get(name, 224) if name in FIXED else RUN.get(name, 64)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


@dataclass(frozen=True)
class Counts:
    """What the analysis finds: whole numbers only, the same on every machine."""

    symbols: int
    """Free symbols of the axis types, before any block ties two of them."""
    blocks: int
    kernels: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


def count(model: nn.Module, supernet: SuperNetwork, inputs: torch.Tensor) -> Counts:
    """The counts of `supernet`, which is that of `model` traced with `inputs`."""
    symbols = analyse(trace(model, inputs)).free_symbols()
    return Counts(len(symbols), len(supernet.space.blocks), len(supernet.space.kernels))


def counts_by_name(name: str) -> Counts:
    """The counts of a model of the zoo, on meta tensors: no weight is made."""
    model, inputs = make_model(name, "meta"), traced_input(name, "meta")
    return count(model, SuperNetwork.from_model(model, inputs), inputs)
