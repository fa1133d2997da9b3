"""What LiteRT does otherwise than other targets: its threads and integers. Skipped where it is missing."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conversion_cases import error, feed, network, small
from onnx import ModelProto
from torch import Tensor, nn

from bnas.runtime.targets.litert import LiteRT
from bnas.runtime.targets.target import Network, TargetError

pytest.importorskip("ai_edge_litert")
if find_spec("litert_torch") is None:  # its import prints and changes random numbers
    pytest.skip("could not import 'litert_torch'", allow_module_level=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    torch.manual_seed(0)
    made = network(*small())
    return made, LiteRT().build(made, tmp_path_factory.mktemp("small"))


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
