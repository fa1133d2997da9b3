"""What the analysis finds in torchvision's models is what the golden file says; `make golden` rewrites it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_models import FINE, NAMES, count, enliven, make_model, run_input, traced_input

from bnas.runtime import SuperNetwork, verify

GOLDEN = json.loads(Path(__file__).with_name("golden_zoo.json").read_text())
SAMPLE = (
    "resnet18",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "googlenet",
    "convnext_tiny",
    "vit_b_32",
)
COUNTED = ("swin_t", "swin_v2_t", "densenet121", "ssdlite320_mobilenet_v3_large", "inception_v3", "resnext50_32x4d")
"""Too slow to be run here; ``make zoo`` runs all."""


def test_the_golden_file_has_every_model() -> None:
    assert sorted(GOLDEN) == sorted(NAMES)
    assert all(set(map(type, counts.values())) == {int} for counts in GOLDEN.values())


@pytest.mark.parametrize("name", [*SAMPLE, *COUNTED])
def test_counts_are_golden(name: str) -> None:
    model, inputs = make_model(name, "meta"), traced_input(name, "meta")
    assert count(model, SuperNetwork.from_model(model, inputs), inputs).to_json() == GOLDEN[name]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_random_sub_network_is_the_oracle(name: str) -> None:
    model, images = make_model(name), run_input(name)
    enliven(model, images)
    supernet = SuperNetwork.from_model(model, traced_input(name), FINE)
    subnet = supernet.space.sample(np.random.default_rng(1))
    assert verify(model, supernet, subnet, images, tolerance=math.inf) < 1e-11
    with torch.no_grad():
        found, whole = (supernet.extract(one)(images) for one in (subnet, supernet.space.maximal()))
        program = supernet.program(subnet)(images)
    torch.testing.assert_close(program, found)
    with pytest.raises(AssertionError):  # it is another network, and neither is constant
        torch.testing.assert_close(found, whole)
