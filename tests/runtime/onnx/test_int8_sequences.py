"""Quantised transformers: linear layers on every token, masks that hold minus infinity, weights that are transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bnas.runtime import SuperNetwork
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.int8 import Int8, QuantisationError
from bnas.runtime.onnx.quantisable import is_of_sequences, masked, store_transposed
from bnas.runtime.onnx.session import OnnxModule

TOKENS, WIDTH, CLASSES = 50, 32, 3
SETTINGS = [pytest.param({"activations": name}, id=name) for name in ("auto", "static", "dynamic")]


class Texts(nn.Module):
    """An attention over the tokens that a mask leaves, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(TOKENS, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        heads = [one(x).unflatten(-1, (2, -1)).transpose(1, 2) for one in (self.query, self.key, self.value)]
        found = F.scaled_dot_product_attention(*heads, attn_mask=mask.bool()[:, None, None, :])
        x = x + self.out(found.transpose(1, 2).flatten(2))
        kept = mask.float().unsqueeze(-1)
        return self.head((x * kept).sum(1) / kept.sum(1))


def texts(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[::2, length - length // 3 :] = 0
    return {"ids": torch.randint(TOKENS, (batch, length), generator=generator), "mask": mask}


DATA = [(texts(4, length), torch.arange(4) % CLASSES) for length in (6, 9, 12)]


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    dynamic = {"ids": {1: "length"}, "mask": {1: "length"}}
    supernet = SuperNetwork.from_model(Texts().eval(), texts(2, 8), dynamic=dynamic)
    return supernet.extract(supernet.space.maximal())


def error(path: Path, module: nn.Module) -> float:
    """The largest difference from the module at several lengths, relative to the largest output."""
    found = OnnxModule(path)
    with torch.no_grad():
        pairs = [(found(**texts(3, length)), module(**texts(3, length))) for length in (5, 8, 20)]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("settings", SETTINGS)
def test_outputs_stay_near_at_every_length(settings: dict[str, Any], module: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", texts(2, 8), Int8(DATA, **settings))
    assert report.int8 is not None
    layers = {f"{name}/MatMul" for name in ("query", "key", "value", "out")}
    assert layers <= set(report.int8.layers)
    assert 1e-5 < error(report.path, module) < 0.1
    plain = export_onnx(module, tmp_path / "fp32.onnx", texts(2, 8))
    assert report.bytes < plain.bytes


def test_dynamic_ranges_need_no_data_and_static_ones_do(module: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", texts(2, 8), Int8())
    assert report.int8 is not None
    assert report.int8.samples == 0
    with pytest.raises(QuantisationError, match="calibration: give batches"):
        export_onnx(module, tmp_path / "b.onnx", texts(2, 8), Int8(activations="static"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_excluded_stays_in_float(settings: dict[str, Any], module: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", texts(2, 8), Int8(DATA, exclude=("query",), **settings)).int8
    assert report is not None
    assert "query/MatMul" in report.excluded
    assert "query/MatMul" not in report.layers
    assert "key/MatMul" in report.layers


def weighted(*nodes: onnx.NodeProto, **arrays: Any) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(list(nodes), "g", ends[:1], ends[1:], stored))


def test_a_transposed_weight_is_stored_so_and_kept_where_others_read_it() -> None:
    turn = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
    model = weighted(turn, helper.make_node("MatMul", ["x", "t"], ["y"]), w=[[1, 2], [3, 4]])
    assert store_transposed(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    (stored,) = model.graph.initializer
    assert (stored.name, numpy_helper.to_array(stored).tolist()) == ("t", [[1, 3], [2, 4]])
    assert not store_transposed(model)
    add = helper.make_node("Add", ["t", "w"], ["y"])
    model = weighted(turn, add, w=[[1, 2], [3, 4]])
    assert store_transposed(model)
    assert {one.name for one in model.graph.initializer} == {"w", "t"}


@pytest.mark.parametrize(("least", "names"), [(-np.inf, ["add", "softmax"]), (-3e38, ["add", "softmax"]), (-100.0, [])])
def test_from_a_mask_to_the_softmax_nothing_has_a_range(least: float, names: list[str]) -> None:
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["a"], name="add"),
        helper.make_node("Softmax", ["a"], ["s"], name="softmax"),
        helper.make_node("MatMul", ["s", "x"], ["y"], name="product"),
    ]
    assert masked(weighted(*nodes, mask=[[0, least], [0, 0]])) == names


def test_layers_on_sequences_are_told_from_others() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer = helper.make_node("Gemm", ["x", "w"], ["y"])
    assert is_of_sequences(weighted(product, product, layer, w=[[1, 2], [3, 4]]))
    assert not is_of_sequences(weighted(product, layer, w=[[1, 2], [3, 4]]))
    assert not is_of_sequences(weighted(helper.make_node("MatMul", ["x", "x"], ["y"])))
