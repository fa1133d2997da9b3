"""Targets that convert modules: outputs, shapes and errors. Each is an extra; without it its tests are skipped."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conversion_cases import Branches, Rare, error, feed, mobile, network, small, transformer
from onnx import ModelProto

from bnas.runtime.targets.target import KNOWN, Network, Target, TargetError

NEEDED = {"executorch": ("executorch",), "litert": ("ai_edge_litert", "litert_torch")}
"""What has to be installed; it is not imported here: some of it prints and changes random numbers."""


@pytest.fixture(scope="module", params=NEEDED)
def target(request: pytest.FixtureRequest) -> Target:
    missing = [name for name in NEEDED[request.param] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    module, name = KNOWN[request.param]
    return getattr(import_module(f"bnas.runtime.targets.{module}"), name)()


@pytest.fixture(scope="module")
def built(target: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    torch.manual_seed(0)
    made = network(*small())
    return made, target.build(made, tmp_path_factory.mktemp("small"))


def test_it_is_a_target(target: Target) -> None:
    assert isinstance(target, Target)
    described = target.describe()
    assert described["target"] == type(target).__name__
    assert described[target.kind]
    assert described["cpu"]


@pytest.mark.parametrize("make", [mobile, transformer])
def test_outputs_are_those_of_pytorch_and_nothing_is_printed(target, make, tmp_path, capfd) -> None:
    torch.manual_seed(0)
    net = network(*make())
    modes, numbers = [one.training for one in net.module.modules()], torch.random.get_rng_state()
    loaded = target.load(target.build(net, tmp_path), feed(*net.example), 1)
    (found,) = target.run(loaded, feed(*net.example))
    assert error(net, found) < 10
    (other,) = target.run(loaded, feed(net.example[0] + 0.1))
    assert error(net, other) > 1000
    assert capfd.readouterr() == ("", "")
    assert [one.training for one in net.module.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), numbers)


def test_a_file_and_its_content_give_the_same(target, built) -> None:
    net, path = built
    given = feed(*net.example)
    outputs = [target.run(target.load(file, given, 1), given)[0] for file in (path, path.read_bytes())]
    assert error(net, outputs[0]) < 10
    np.testing.assert_array_equal(*outputs)


def test_time_is_told_in_milliseconds(target, built) -> None:
    net, path = built
    given = feed(*net.example)
    cpu, wall = target.time(target.load(path, given, 1), given, 5)
    assert 0 < cpu < 1000
    assert 0 < wall < 10_000


def test_inputs_of_another_shape_are_refused_when_it_is_loaded(target, built) -> None:
    with pytest.raises(TargetError, match=r"takes inputs of the shapes \[\(2, 3, 16, 16\)\].*not \[\(1, 3, 16, 16\)\]"):
        target.load(built[1], feed(torch.ones(1, 3, 16, 16)), 1)


@pytest.mark.parametrize(("module", "said"), [(Branches(), "data-dependent"), (Rare(), "special_bessel_j0")])
def test_what_cannot_be_converted_is_told(target, module, said, tmp_path, capfd) -> None:
    net = Network("branchy", b"", ModelProto(), module.eval(), (torch.ones(2, 2),))
    with pytest.raises(TargetError, match=rf"{type(target).__name__} cannot convert 'branchy': .*{said}"):
        target.build(net, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_is_refused(target, tmp_path) -> None:
    with pytest.raises(TargetError, match="cannot convert 'file': it takes a module, and this is an ONNX file"):
        target.build(Network("file", b"", ModelProto()), tmp_path)
