"""LiteRT beside PyTorch: outputs, shapes, threads and errors. An extra; without it these tests are skipped."""

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from bnas.runtime.targets.litert import LiteRT
from bnas.runtime.targets.target import Network, Target, TargetError

pytest.importorskip("ai_edge_litert")
if find_spec("litert_torch") is None:  # its import prints and changes random numbers
    pytest.skip("could not import 'litert_torch'", allow_module_level=True)


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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    torch.manual_seed(0)
    made = network(*small())
    return made, LiteRT().build(made, tmp_path_factory.mktemp("small"))


def test_it_is_a_target() -> None:
    assert isinstance(LiteRT(), Target)
    described = LiteRT().describe()
    assert described["target"] == "LiteRT"
    assert described["litert"]
    assert described["cpu"]


@pytest.mark.parametrize("make", [mobile, transformer])
def test_outputs_are_those_of_pytorch_and_nothing_is_printed(make, tmp_path, capfd) -> None:
    torch.manual_seed(0)
    net, target = network(*make()), LiteRT()
    modes, numbers = [one.training for one in net.module.modules()], torch.random.get_rng_state()
    loaded = target.load(target.build(net, tmp_path), feed(*net.example), 1)
    (found,) = target.run(loaded, feed(*net.example))
    assert error(net, found) < 10
    (other,) = target.run(loaded, feed(net.example[0] + 0.1))
    assert error(net, other) > 1000
    assert capfd.readouterr() == ("", "")
    assert [one.training for one in net.module.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), numbers)


def test_a_file_and_its_content_give_the_same(built) -> None:
    net, path = built
    target, given = LiteRT(), feed(*net.example)
    outputs = [target.run(target.load(file, given, 1), given)[0] for file in (path, path.read_bytes())]
    assert error(net, outputs[0]) < 10
    np.testing.assert_array_equal(*outputs)


def test_time_is_told_in_milliseconds(built) -> None:
    net, path = built
    target, given = LiteRT(), feed(*net.example)
    cpu, wall = target.time(target.load(path, given, 1), given, 5)
    assert 0 < cpu < 1000
    assert 0 < wall < 10_000


def test_inputs_of_another_shape_are_refused_when_it_is_loaded(built) -> None:
    with pytest.raises(TargetError, match=r"takes inputs of the shapes \[\(2, 3, 16, 16\)\].*not \[\(1, 3, 16, 16\)\]"):
        LiteRT().load(built[1], feed(torch.ones(1, 3, 16, 16)), 1)


def test_threads_are_those_of_each_loaded_network(built) -> None:
    net, path = built
    target, given = LiteRT(), feed(*net.example)
    loaded = [target.load(path, given, threads) for threads in (1, 2)]
    for one in loaded:
        assert error(net, target.run(one, given)[0]) < 10


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, words: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return words + 1, self.table(words) + x


def test_integers_become_those_of_32_bits(tmp_path) -> None:
    torch.manual_seed(0)
    example = torch.randint(20, (3, 7)), torch.randn(3, 7, 4)
    net, target = Network("words", b"", ModelProto(), Looks().eval(), example), LiteRT()
    words, found = target.run(target.load(target.build(net, tmp_path), feed(*example), 1), feed(*example))
    with torch.no_grad():
        expected = net.module(*example)
    assert words.dtype == np.int32
    np.testing.assert_array_equal(words, expected[0])
    np.testing.assert_allclose(found, expected[1], rtol=1e-6)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else -x


class Rare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(("module", "said"), [(Branches(), "data-dependent"), (Rare(), "special_bessel_j0")])
def test_what_cannot_be_converted_is_told(module, said, tmp_path, capfd) -> None:
    net = Network("branchy", b"", ModelProto(), module.eval(), (torch.ones(2, 2),))
    with pytest.raises(TargetError, match=rf"LiteRT cannot convert 'branchy': .*{said}"):
        LiteRT().build(net, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_is_refused(tmp_path) -> None:
    with pytest.raises(TargetError, match="cannot convert 'file': it takes a module, and this is an ONNX file"):
        LiteRT().build(Network("file", b"", ModelProto()), tmp_path)


def test_what_is_no_file_of_it_is_told(tmp_path, capfd) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"no program" * 100)
    with pytest.raises(TargetError, match=r"cannot load .*model.tflite: ValueError: "):
        LiteRT().load(path, {}, 1)
    assert capfd.readouterr() == ("", "")


def test_without_it_the_error_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(TargetError, match=r"pip install 'bnas\[litert\]'"):
        LiteRT().load(tmp_path / "model.tflite", {}, 1)
