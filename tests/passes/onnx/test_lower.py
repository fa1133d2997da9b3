"""What holds for lowering whatever the operator: batch, names, in-place writes, folding, and what is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from lowering_checks import IMAGE, Net, assert_lowered, inputs_of, op_types, run, traced
from torch import Tensor, fx, nn
from torch.fx import GraphModule

from bnas.passes import OPERATORS, Layer, Operator, register
from bnas.passes.errors import LoweringError, RuleError
from bnas.passes.onnx.builder import IR_VERSION, OPSET
from bnas.passes.onnx.lower import lower
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import BATCH


def test_several_inputs_and_broadcasting() -> None:
    assert_lowered(lambda x, gate: x * gate.sigmoid()[:, :, None, None], IMAGE, (6,))


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.rows = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.token.expand(x.shape[0], -1, -1)
        return torch.cat([tokens, x, self.rows.repeat(x.size(0), 1).unsqueeze(1)], 1)


def test_expanded_to_the_batch() -> None:
    assert_lowered(ClassToken(), (5, 8))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_softmax_over_the_axis_that_pytorch_chooses() -> None:
    assert_lowered(lambda x: F.softmax(x) + F.log_softmax(x), IMAGE)


def updates_its_input(x: Tensor) -> Tensor:
    y = x + 1
    x.add_(y)
    return x * y


def relu_changes_a_name(x: Tensor) -> Tensor:
    y = x * 1
    F.relu(y, inplace=True)
    z = y.detach()
    z += 1
    return y


def updates_positionally(x: Tensor) -> Tensor:
    y = x - 0.5
    F.hardtanh(y, -0.2, 0.2, True)
    F.elu(y, 1.0, True)
    return y + x


@pytest.mark.parametrize("net", [updates_its_input, relu_changes_a_name, updates_positionally])
def test_what_is_written_in_place_is_seen_by_all_later_readers(net: Net) -> None:
    assert_lowered(net, IMAGE)


def test_in_place_module_is_seen_through_the_skip_connection() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            return self.conv(self.relu(x)) + x

    assert_lowered(Block(), IMAGE)


def test_constants_that_are_written_in_parts_have_the_numbers_of_their_time() -> None:
    graph = fx.Graph()
    x, base = graph.placeholder("x"), graph.get_attr("base")
    mask = graph.call_method("clone", (base,))
    before = graph.call_function(torch.mul, (x, mask))
    graph.call_method("zero_", (graph.call_function(operator.getitem, (mask, slice(2, 4))),))
    graph.call_function(operator.setitem, (mask, 0, 5.0))
    graph.output((before, graph.call_function(torch.mul, (x, mask)), graph.call_function(torch.mul, (x, base))))
    root = nn.Module()
    root.register_buffer("base", torch.ones(8))
    model = assert_lowered(GraphModule(root, graph), IMAGE)
    assert len(model.graph.initializer) == 3


@pytest.mark.parametrize("through_a_view", [False, True])
def test_writing_into_a_buffer_is_refused_and_leaves_it_alone(through_a_view: bool) -> None:
    graph = fx.Graph()
    x, count = graph.placeholder("x"), graph.get_attr("count")
    count = graph.call_method("view", (count, -1)) if through_a_view else count
    graph.output(graph.call_function(torch.add, (x, graph.call_method("add_", (count, 1)))))
    root = nn.Module()
    root.register_buffer("count", torch.zeros(1))
    module = GraphModule(root, graph).eval()
    with pytest.raises(LoweringError, match=r"'(count|view)' in place"):
        lower(module, inputs_of([IMAGE], 2))
    assert float(module.count) == 0


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        (lambda: nn.Conv2d(6, 4, 3), nn.BatchNorm2d),
        (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d),
        (lambda: nn.Conv1d(6, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm1d),
        (lambda: nn.ConvTranspose2d(6, 4, 3, bias=False), nn.BatchNorm2d),
    ],
    ids=["bias", "groups", "padding-mode", "transposed"],
)
def test_batch_norm_is_folded(convolution: Callable[[], nn.Module], norm: type[nn.Module]) -> None:
    model = assert_lowered(
        nn.Sequential(convolution(), norm(4), nn.ReLU()), IMAGE if norm is nn.BatchNorm2d else (6, 9)
    )
    assert "BatchNormalization" not in op_types(model)
    assert len(model.graph.initializer) <= 3  # what was folded away is not stored


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class ConvTwice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


class NormTwice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(x)


class ReadBehindDropout(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.dropout(y, 0.5, False)) + y


@pytest.mark.parametrize("kind", [TwoReaders, ConvTwice, NormTwice, ReadBehindDropout])
def test_batch_norm_is_kept_where_something_else_reads_the_same(kind: type[nn.Module]) -> None:
    assert "BatchNormalization" in op_types(assert_lowered(kind(), IMAGE))


def test_batch_norm_behind_a_transposed_convolution_with_groups_is_kept() -> None:
    model = assert_lowered(nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)), IMAGE)
    assert "BatchNormalization" in op_types(model)


def test_wrong_rule_gives_other_numbers(change: Callable[..., Any]) -> None:
    change(F.relu6, onnx=lambda site: site.emit("Clip", site.x, *wrong_bounds(site)))
    with pytest.raises(AssertionError, match="not close"):
        assert_lowered(lambda x: F.relu6(4 * x), IMAGE)


def wrong_bounds(site: Site) -> tuple[str, str]:
    return site.operand(0, torch.float32), site.operand(5.9, torch.float32)


def test_wrong_weights_give_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.passes.ops.norms.fuse_conv_bn_weights", lambda weight, *_: (weight, weight[:, 0, 0, 0]))
    with pytest.raises(AssertionError, match="not close"):
        assert_lowered(nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), IMAGE)


def test_shared_tensors_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) + 2 + x * 2

    model = assert_lowered(Tied(), (8,))
    assert [one.name for one in model.graph.initializer] == ["first.weight", "constant"]


def test_names_come_from_the_model() -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU()))
    model = lower(traced(net), inputs_of([IMAGE], 2), metadata={"subnet": "{}"})
    assert [node.name for node in model.graph.node] == ["stem.0/Conv", "stem.1/Relu"]
    assert [one.name for one in model.graph.initializer] == ["stem.0.weight", "stem.0.bias"]
    assert {one.key: one.value for one in model.metadata_props} == {"subnet": "{}"}
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_batch_is_dynamic_and_named() -> None:
    graph = lower(traced(lambda x: (x.flatten(1), x.flatten(0, 1))), inputs_of([IMAGE], 2)).graph
    assert dims(graph.input[0]) == ["batch", *IMAGE]
    assert [dims(one) for one in graph.output] == [["batch", 432], ["batch_times_6", 9, 8]]


@pytest.mark.parametrize(
    ("net", "names"),
    [
        pytest.param(lambda x: x, ["output"], id="input"),
        pytest.param(lambda x: torch.ones(2, 3), ["output"], id="constant"),
        pytest.param(lambda x: (x.relu(), [x, x.exp()]), ["output_0", "output_1_0", "output_1_1"], id="nested"),
        pytest.param(lambda x: {"logits": x + 1, "aux": (x, x)}, ["logits", "aux_0", "aux_1"], id="dict"),
        pytest.param(lambda output: [output.relu()] * 2, ["output_0", "output_1"], id="twice"),
        pytest.param(lambda output: output.relu(), ["output_1"], id="taken"),
    ],
)
def test_outputs_are_flattened_and_named(net: Net, names: list[str]) -> None:
    model = assert_lowered(net, IMAGE)
    assert [one.name for one in model.graph.output] == names


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        pytest.param(lambda x: x.view(2, 432), "any batch size", id="fixed-batch"),
        pytest.param(lambda x: F.max_pool2d(x, 2, return_indices=True), "indices", id="indices"),
        pytest.param(nn.Sequential(nn.AdaptiveMaxPool2d(4)), "not a divisor", id="uneven-max"),
        pytest.param(nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False)), "statistics", id="batch-statistics"),
        pytest.param(lambda x: F.interpolate(x, (4, 4), mode="area"), "'area'", id="area"),
        pytest.param(lambda x: x[:, x[0, :, 0, 0] > 0], "getitem fails", id="dynamic-mask"),
        pytest.param(lambda x: torch.split(x, 100_000), "takes an axis apart", id="split-batch"),
        pytest.param(
            lambda x: torch.split(x, 3)[0], "another number of tensors at other sizes", id="split-batch-in-threes"
        ),
        pytest.param(lambda x: x.unbind(), "another number of tensors at other sizes", id="unbind-batch"),
        pytest.param(lambda x: x.to(torch.complex64), "complex64", id="dtype"),
        pytest.param(lambda x: (x, 3), "returns 3", id="output"),
        pytest.param(lambda x: F.normalize(x, p=3.0), "order 3.0", id="norm-order"),
        pytest.param(nn.Sequential(nn.Conv2d(9, 4, 3)), r"^0: torch\.conv2d fails.*channel", id="shape"),
    ],
)
def test_refuses_and_says_why(net: Net, reason: str) -> None:
    with pytest.raises(LoweringError, match=reason):
        lower(traced(net), inputs_of([IMAGE], 2))


@pytest.mark.parametrize(
    ("net", "place"),
    [
        pytest.param(lambda x: torch.tanh(x), r"tanh.*node 'tanh'", id="function"),
        pytest.param(nn.Sequential(nn.Tanh()), r"0.*no lowering rule for .*tanh", id="layer"),
    ],
)
def test_names_an_operator_without_a_rule(net: Net, place: str, change: Callable[..., Any]) -> None:
    change(torch.tanh, onnx=None)
    with pytest.raises(LoweringError, match=f"{place}.*passes.register"):
        lower(traced(net), inputs_of([IMAGE], 2))


@pytest.mark.parametrize(
    ("drop", "shape"),
    [
        (F.dropout, IMAGE),
        (F.dropout1d, (6, 9)),
        (F.dropout2d, IMAGE),
        (F.dropout3d, (2, 3, 4, 5)),
        (F.alpha_dropout, IMAGE),
        (F.feature_alpha_dropout, IMAGE),
    ],
)
def test_dropout_that_drops_is_refused(drop: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(LoweringError, match=rf"{drop.__name__}.*drops values at random"):
        lower(traced(lambda x: drop(x, 0.5, True)), inputs_of([shape], 2))


def test_training_mode_is_refused() -> None:
    module = traced(nn.Sequential(nn.ReLU(), nn.Dropout()))
    module.get_submodule("1").train()
    with pytest.raises(LoweringError, match=r"^1: is in training mode"):
        lower(module, inputs_of([IMAGE], 2))


def test_number_of_inputs_is_checked() -> None:
    module = traced(lambda x, y: x + y)
    with pytest.raises(LoweringError, match="not given its input 'y'"):
        lower(module, inputs_of([IMAGE], 2))
    with pytest.raises(LoweringError, match="takes 2 inputs but got 3"):
        lower(module, inputs_of([IMAGE] * 3, 2))


def test_second_rule_for_an_operator_is_an_error() -> None:
    with OPERATORS.copied(), pytest.raises(RuleError, match="relu already has a record, that of relu"):
        register(Operator(F.relu, onnx=lambda site: site.name(site.x)))


def test_rule_that_forgets_a_result_is_an_error(change: Callable[..., Any]) -> None:
    change(torch.chunk, onnx=lambda site: site.name(site.x))
    with pytest.raises(RuleError, match=r"chunk: the rule for torch\.chunk gives 1 results for 2 tensors"):
        lower(traced(lambda x: x.chunk(2, 1)), inputs_of([IMAGE], 2))


class Doubled(nn.Module):
    """Cannot be traced into: it decides by a number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.dim() > 3 else x


def test_users_teach_their_own_layer(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), Doubled())
    monkeypatch.setattr(fx.Tracer, "is_leaf_module", lambda self, module, _: not isinstance(module, nn.Sequential))
    module = traced(net)
    monkeypatch.undo()
    with pytest.raises(LoweringError, match=r"^1: Doubled has no lowering rule.*passes.register"):
        lower(module, inputs_of([IMAGE], 2))
    change("doubled", layers={Doubled: Layer()}, onnx=lambda site: site.emit("Add", site.x, site.x))
    found = run(lower(module, inputs_of([IMAGE], 2)), [x := torch.randn(3, *IMAGE)])
    torch.testing.assert_close(found[0], net(x).detach())


def test_modules_and_functions_without_a_rule_are_traced_into() -> None:
    def swish_of(x: Tensor, slope: float) -> Tensor:
        return x * torch.sigmoid(slope * x)

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(swish_of, (graph.call_module("inner", (x,)), 2.0)))
    root = nn.Module()
    root.add_module("inner", nn.Sequential(nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4)))
    model = assert_lowered(GraphModule(root, graph), IMAGE)
    assert model.graph.node[0].name == "inner.0/Conv"
    assert "inner.1.weight" in {one.name for one in model.graph.initializer}


def test_lowering_computes_nothing_and_needs_no_numbers() -> None:
    with torch.inference_mode():
        model = lower(traced(nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU())), [torch.empty(0, *IMAGE)])
    assert dims(model.graph.input[0])[0] == "batch"
    assert str(BATCH) not in onnx.printer.to_text(model)


def test_squeeze_of_all_axes_keeps_the_batch() -> None:
    module = traced(lambda x: x[:, :1].squeeze())
    assert dims(lower(module, inputs_of([(1, 5)], 1)).graph.output[0]) == ["batch", 5]


def test_half_precision_is_stored_as_such() -> None:
    model = lower(traced(nn.Sequential(nn.Linear(8, 4))).bfloat16(), [torch.zeros(2, 8, dtype=torch.bfloat16)])
    assert {one.data_type for one in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}


class ByKernels(nn.Module):
    """A kernel for each sample: the batch in the groups of one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = x.mean((2, 3)).view(-1, 1, 1, 1)
        found = F.conv2d(x.reshape(1, -1, x.size(2), x.size(3)), kernels, groups=x.size(0) * x.size(1))
        return found.view(x.shape)


def test_groups_that_follow_the_batch_are_refused_in_words() -> None:
    with pytest.raises(LoweringError, match=r"conv2d: Conv has a group that follows the sizes of the inputs"):
        lower(traced(ByKernels()), [torch.randn(2, 3, 4, 4)])
