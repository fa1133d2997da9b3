"""Detectors of torchvision as a whole: backbone, neck and heads are elastic, what reads values is opaque."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torchvision
from capture_cases import same_outputs
from torch import Tensor, nn

import bnas
from bnas.passes.errors import LoweringError
from bnas.passes.frontend.structure import tensors_of
from bnas.passes.onnx.lower import lower
from bnas.passes.rigidity import rigid_share
from bnas.runtime import SuperNetwork

DETECTORS: dict[str, Any] = {
    "retinanet_resnet50_fpn": ({"min_size": 64, "max_size": 128, "score_thresh": 0.01}, {"backbone", "head"}),
    "ssdlite320_mobilenet_v3_large": ({"score_thresh": 0.01}, {"backbone", "head"}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        {"min_size": 64, "max_size": 128, "box_score_thresh": 0.01},
        {"backbone", "rpn", "roi_heads"},
    ),
}


def detector(name: str) -> nn.Module:
    """A detector with random weights, which finds something in every image."""
    torch.manual_seed(0)
    build = getattr(torchvision.models.detection, name)
    net: nn.Module = build(weights=None, weights_backbone=None, num_classes=5, **DETECTORS[name][0])
    return net.eval()


def images(*sizes: tuple[int, int]) -> tuple[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return ([torch.rand(3, *size, generator=generator) for size in sizes],)


@pytest.fixture(scope="module", params=DETECTORS)
def found(request: pytest.FixtureRequest) -> tuple[str, SuperNetwork]:
    return request.param, SuperNetwork.from_model(detector(request.param), images((64, 64), (64, 64)))


def test_all_parts_are_elastic(found: tuple[str, SuperNetwork]) -> None:
    name, supernet = found
    full, small = (dict(one.named_parameters()) for one in (supernet.model, supernet.extract(supernet.space.minimal())))
    shrunk = {path.partition(".")[0] for path, tensor in small.items() if tensor.shape != full[path].shape}
    assert shrunk == DETECTORS[name][1]
    assert supernet.space.blocks
    assert sum(rigid_share(supernet.skeleton.types).values()) < 0.01
    opaque = {one.place for one in supernet.diagnostics if "opaque" in one.reason}
    assert "transform" in opaque
    assert any("postprocess_detections" in place for place in opaque)


def test_images_of_any_sizes_are_as_in_the_model(found: tuple[str, SuperNetwork]) -> None:
    _, supernet = found
    maximal = supernet.eval().program(supernet.space.maximal())
    for sizes in (((64, 64), (64, 64)), ((77, 104), (114, 57)), ((50, 200), (128, 128))):
        expected = supernet.model(*images(*sizes))
        assert all(len(one["boxes"]) for one in expected)
        same_outputs((maximal,), supernet.model, images(*sizes))


def test_the_smallest_sub_network_is_the_oracle_and_the_extracted_module(found: tuple[str, SuperNetwork]) -> None:
    _, supernet = found
    minimal, inputs = supernet.space.minimal(), images((64, 64), (64, 64))
    bnas.verify(supernet.model, supernet, minimal, inputs)
    part = supernet.extract(minimal)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in supernet.model.parameters()) / 2
    with torch.no_grad():
        expected = tensors_of(supernet.eval().program(minimal)(*inputs))
        assert all(one.numel() for one in expected)
        for module in (part, pickle.loads(pickle.dumps(part))):
            torch.testing.assert_close(tensors_of(module(*inputs)), expected, rtol=1e-4, atol=1e-4)


def test_costs_and_gradients(found: tuple[str, SuperNetwork]) -> None:
    _, supernet = found
    assert supernet.costs(supernet.space.minimal())["macs"] < supernet.costs(supernet.space.maximal())["macs"]
    program = supernet.train().program(supernet.space.maximal())
    sum(one["scores"].sum() + one["boxes"].sum() for one in program(*images((64, 64), (64, 64)))).backward()
    with_gradient = {name.partition(".")[0] for name, p in supernet.model.named_parameters() if p.grad is not None}
    assert "backbone" in with_gradient
    supernet.model.zero_grad()


def test_onnx_says_what_to_do_instead(found: tuple[str, SuperNetwork]) -> None:
    _, supernet = found
    with pytest.raises(LoweringError, match=r"is an opaque method.*Export the part of the model"):
        lower(supernet.extract(supernet.space.minimal()), images((64, 64), (64, 64)))


def targets(*counts: int) -> list[dict[str, Tensor]]:
    """Boxes in every image, and what they hold."""
    corners = torch.tensor([[3.0, 5.0, 30.0, 40.0], [10.0, 10.0, 50.0, 60.0], [1.0, 20.0, 44.0, 51.0]])
    return [{"boxes": corners[:count], "labels": torch.arange(1, count + 1)} for count in counts]


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_with_targets_a_detector_trains_on_its_own_losses(name: str) -> None:
    net = detector(name)
    supernet = SuperNetwork.from_model(net, (*images((64, 64), (64, 64)), targets(2, 2)))
    assert supernet.dynamic["targets_0_boxes"] == supernet.dynamic["targets_0_labels"] == {0: "targets_0_0"}
    supernet.train()
    given = (*images((64, 64), (80, 72)), targets(3, 1))
    losses = []
    for module in (net.train(), supernet.program(supernet.space.maximal())):
        torch.manual_seed(0)
        losses.append({key: value.detach() for key, value in module(*given).items()})
    assert all(value > 0 for value in losses[0].values())
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)
    sum(supernet.program(supernet.space.minimal())(*given).values()).backward()
    with_gradient = {path.partition(".")[0] for path, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == DETECTORS[name][1]
