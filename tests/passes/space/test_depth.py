"""Blocks that a user lists: by name, by pairs of values, by BootstrapNAS's scopes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from region_cases import Row
from torch import nn

from bnas.passes import AxisTypes, Elasticity, ElasticityError, analyse, skippable_blocks, trace
from bnas.passes.space.choices import find_chains
from bnas.passes.space.depth import find_value

PUBLISHED = [(1, 1, 2), (2, 1, 2), (2, 2, 3), (3, 3, 4), (3, 4, 5), (4, 1, 2)]
"""``skipped_blocks`` of both published configurations of BootstrapNAS: layer, and the block before and that skipped."""


def scope(layer: int, block: int) -> str:
    return f"ResNet/Sequential[layer{layer}]/Bottleneck[{block}]/ReLU[relu]/relu__2"


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """ResNet-50 for CIFAR-10, as the published configurations are for."""
    net = torchvision.models.resnet50(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net.eval()


@pytest.fixture
def types(resnet: nn.Module) -> AxisTypes:
    return analyse(trace(resnet, torch.zeros(1, 3, 32, 32)))


def listed(types: AxisTypes, *entries: Any) -> list[str]:
    return [b.name for b in skippable_blocks(types, Elasticity(skipped_blocks=list(entries))).found]


def test_published_configurations_resolve(types: AxisTypes) -> None:
    entries = [[scope(layer, before), scope(layer, block)] for layer, before, block in PUBLISHED]
    assert listed(types, *entries) == ["layer1.2", "layer2.2", "layer2.3", "layer3.4", "layer3.5", "layer4.2"]
    blocks = skippable_blocks(types, Elasticity(skipped_blocks=entries)).found
    assert [len(chain) for chain in find_chains(types.ir, blocks)] == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("layer3.4", "layer3.4"),
        (["layer1.0", "layer1.1"], "layer1.1"),
        (["layer1_0_relu_2", "layer1_1_relu_2"], "layer1.1"),
        (["layer1_0_relu_2", "add__1"], "layer1.1"),
        (["layer1.0.relu", "layer1.1.relu"], "layer1.1"),
        (["layer1.0", "ResNet/Sequential[layer1]/Bottleneck[1]/__iadd___0"], "layer1.1"),
        (["layer1.0", "layer1.2"], "layer1_0_relu_2-layer1_2_relu_2"),
    ],
)
def test_ways_to_name_a_block(types: AxisTypes, entry: Any, name: str) -> None:
    assert listed(types, entry) == [name]


def test_listed_blocks_stand_in_network_order(types: AxisTypes) -> None:
    assert listed(types, "layer4.2", "layer1.1") == ["layer1.1", "layer4.2"]
    assert listed(types) == []


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (["layer9.1"], r"no block 'layer9\.1'; the nearest are layer\d\.1"),
        (
            [[scope(1, 1)[:-1] + "3", scope(1, 2)]],
            r"no value '.*relu__3' in the model; the nearest are layer1\.1\.relu",
        ),
        ([[scope(7, 1), scope(1, 2)]], r"no value '.*layer7.*'; the nearest|no value '.*layer7"),
        ([["layer1.1", "ResNet/Sequential[layer1]/Bottleneck[2]/ReLU[relu]/relu"]], "no value"),
        (
            [["layer1.1", "layer2.1"]],
            r"is not a block \(layer2_1_relu_2: its ends .* differ in shape\); the nearest are",
        ),
        ([["layer1.2", "layer1.1"]], r"not computed from layer1_2_relu_2 alone"),
        (["layer1.1", ["layer1.0", "layer1.2"]], r"layer1_0_relu_2-layer1_2_relu_2 overlaps layer1\.1"),
        (["layer1.1", "layer1.1"], r"layer1\.1 overlaps layer1\.1"),
    ],
)
def test_what_is_no_block_is_an_error_that_names_the_nearest(types: AxisTypes, entries: Any, reason: str) -> None:
    with pytest.raises(ElasticityError, match=reason):
        listed(types, *entries)


def test_a_model_without_blocks_says_so() -> None:
    types = analyse(trace(nn.Sequential(nn.Conv2d(3, 8, 1)).eval(), torch.zeros(1, 3, 4, 4)))
    with pytest.raises(ElasticityError, match="no block 'x'; there are none in this model"):
        listed(types, "x")


def test_a_listed_region_may_be_of_any_size_and_is_tied() -> None:
    row = Row((("layer", 8), ("layer", 8)))
    types = analyse(trace(row.module, row.inputs))
    blocks = skippable_blocks(types, Elasticity(skipped_blocks=(("stem", "body.0"),)))
    assert [(b.name, b.size) for b in blocks.found] == [("stem_2-body_0_2", 2)]
    assert len(blocks.ties) == 1
    assert listed(analyse(types.ir), "body") == ["body"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_block_size": -1}, "min_block_size is -1: must be greater than or equal to 0"),
        ({"max_block_size": -1}, "max_block_size is -1: must be greater than or equal to 0"),
        ({"min_block_size": 6, "max_block_size": 5}, "max_block_size is 5: must not be smaller than min_block_size 6"),
        (
            {"skipped_blocks": [["a", "b", "c"]]},
            r"skipped_blocks\[0\] is \['a', 'b', 'c'\]: must be a valid string or must have",
        ),
        ({"skipped_blocks": [3]}, r"skipped_blocks\[0\] is 3: must be a valid string or must be a valid tuple"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ElasticityError, match=reason):
        Elasticity(**settings)


def test_ignored_modules_are_in_no_region() -> None:
    row = Row((("layer", 8), ("layer", 8), ("fire", 8)))
    types = analyse(trace(row.module, row.inputs))
    blocks = skippable_blocks(types, Elasticity(ignored_scopes=("body.1",)))
    assert [b.name for b in blocks.found] == ["body.2"]
    assert not any("body.1" in tie.place for tie in blocks.ties)


def test_values_by_name(types: AxisTypes) -> None:
    assert find_value(types.ir, "conv1").name == "conv1"
    assert find_value(types.ir, "ResNet/Conv2d[conv1]/conv2d_0").name == "conv1"
    assert find_value(types.ir, "ResNet/AdaptiveAvgPool2d[avgpool]/adaptive_avg_pool2d_0").name == "avgpool"
