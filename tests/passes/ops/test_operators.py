"""Every fact of every record, by the examples that the record brings.

For each example a small model is made: a convolution whose outputs are elastic, the example, and a layer behind it. The
sub-networks of the model are compared with the zero-parameter oracle, their ONNX graphs with PyTorch at two batch
sizes, shapes with those of PyTorch, zeros with sums over them, in-place spellings with the plain one, and saved modules
with what they were.
"""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lowering_checks import run
from network_cases import ELASTICITY as ALL
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from bnas.passes import OPERATORS, LoweringError, Operator, Sample, VerificationError, analyse, trace
from bnas.passes.frontend.ir import IR
from bnas.passes.onnx import walk
from bnas.passes.onnx.lower import lower, named_outputs
from bnas.passes.onnx.walk import applied
from bnas.passes.ops import shapes
from bnas.passes.ops.aten import in_python
from bnas.passes.ops.calls import TensorRef, settings_of
from bnas.passes.ops.registry import qualified_name
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_maximal_is_original

ELASTICITY = replace(ALL, dimensions=("width", "kernel"))
"""Without depth: the smallest sub-network would skip the example where it can be a block."""

IMAGES = torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Around(nn.Module):
    """An example between a convolution with elastic outputs and a layer on axis 1 of each of its results."""

    def __init__(self, sample: Sample, after: Callable[[Any], Any] = lambda found: found) -> None:
        super().__init__()
        self.first, self.call, self.after = nn.Conv2d(3, sample.shape[0], 1), sample.call, after
        self.layer = None if sample.layer is None else sample.layer()
        self.weights = nn.ParameterList(nn.Parameter(torch.rand(shape) + 0.5) for shape in sample.weights)
        self.double().eval()
        with torch.no_grad():
            found = self.results(self.first(IMAGES))
        kinds: Any = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        self.last = nn.ModuleList(
            kinds[one.ndim](one.shape[1], 2, *([] if one.ndim == 2 else [1])).double() for one in found
        )

    def results(self, x: Tensor) -> list[Tensor]:
        """What the example gives, in floating point."""
        parts = [] if self.layer is None else [self.layer]
        found = tree_leaves(self.after(self.call(x, *parts, *self.weights)))
        return [one if one.dtype == x.dtype else one.to(x.dtype) for one in found]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [last(one) for last, one in zip(self.last, self.results(self.first(x)), strict=True)]


def examples(**wanted: str) -> list[Any]:
    """The examples of all records that have a fact, as parameters of a test."""
    return [
        pytest.param(record, sample, id=f"{qualified_name(record.op)}-{number}")
        for record in OPERATORS.values()
        if all(getattr(record, fact) is not None for fact in wanted)
        for number, sample in enumerate(record.samples)
    ]


def middle(supernet: SuperNetwork) -> Any:
    return supernet.space.decode([len(variable.choices) // 2 for variable in supernet.space.variables()])


@pytest.mark.parametrize(("record", "sample"), examples())
def test_sub_networks_compute_what_the_oracle_does(record: Operator, sample: Sample) -> None:
    """The axis rule, the zeros and what is computed over kept entries are right, or everything is rigid and says so."""
    supernet = SuperNetwork.from_model(Around(sample), IMAGES, ELASTICITY)
    elastic = "first" in {width.partition("#")[0] for width in supernet.space.widths}
    assert elastic is not bool(sample.rigid)
    assert any(re.search(sample.rigid, one.reason) for one in supernet.diagnostics) or not sample.rigid
    assert_maximal_is_original(supernet, IMAGES)
    for subnet in (supernet.space.minimal(), middle(supernet)):
        assert_extracted_is_oracle(supernet, subnet, IMAGES)


@pytest.mark.parametrize(("record", "sample"), examples())
def test_what_is_saved_computes_the_same_when_it_is_loaded(record: Operator, sample: Sample) -> None:
    """Functions are found again by their names, whatever PyTorch says that their names are."""
    if "opaque" in sample.onnx:
        pytest.skip("the lambda of the example is an opaque method, and pickle finds no lambda")
    for module in extracted(sample):
        again, given = pickle.loads(pickle.dumps(module)), IMAGES.float()
        assert str(again.graph) == str(module.graph)
        with torch.no_grad():
            torch.testing.assert_close(again(given), module(given), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("record", "sample"), examples(onnx=""))
def test_onnx_computes_what_pytorch_does(record: Operator, sample: Sample) -> None:
    """The smallest sub-network, where a call may have become another one, and the largest."""
    for module in extracted(sample):
        if sample.onnx:
            with pytest.raises(LoweringError, match=sample.onnx):
                lower(module, [IMAGES.float()])
            continue
        model = lower(module, [IMAGES.float()])
        for batch in (1, 3):
            images = torch.randn(batch, 3, 4, 6)
            with torch.no_grad():
                expected = [tensor for _, tensor in named_outputs(module(images))]
            torch.testing.assert_close(run(model, [images]), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def extracted(sample: Sample) -> Iterator[Any]:
    """The smallest and the largest sub-network, of any batch."""
    supernet = SuperNetwork.from_model(Around(sample).float(), IMAGES.float(), ELASTICITY)
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        module = supernet.extract(subnet)
        module.meta["dynamic"] = {"x": {0: "batch"}}
        yield module


def test_every_onnx_rule_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not follow the input is computed while lowering: the rule of its operator is then not tested."""
    ran: set[Any] = set()

    def noted(builder: Any, step: Any, *results: Any) -> Any:
        ran.add(step.call.op)
        return applied(builder, step, *results)

    monkeypatch.setattr(walk, "applied", noted)
    for _, sample in (one.values for one in examples(onnx="") if not one.values[1].onnx):
        *_, largest = extracted(sample)
        lower(largest, [IMAGES.float()])
    without = {record.op for record in OPERATORS.values() if record.onnx} - ran
    assert {getattr(op, "__name__", op) for op in without} == {
        *("recurrent", "masked_select"),  # are parts of others
        *("contiguous", "float"),  # are nothing in a graph
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),  # as these are
    }


@pytest.mark.parametrize(("record", "sample"), [one for one in examples(zeros="") if not one.values[1].rigid])
def test_a_sum_over_entries_that_stay_zero_is_right(record: Operator, sample: Sample) -> None:
    """Where a rule says that what is left out is zero, a sum over it stays elastic: its numbers must then be right."""

    def summed(found: Any) -> list[Tensor]:
        return [one.to(torch.float64).square().sum(1, keepdim=True) for one in tree_leaves(found)]

    supernet = SuperNetwork.from_model(Around(sample, summed), IMAGES, ELASTICITY)
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), IMAGES)


SEEN: dict[Any, int] = {}
"""How many results were compared for each shape rule."""


@pytest.mark.parametrize(("record", "sample"), examples(shape=""))
def test_shapes_are_those_of_pytorch(record: Operator, sample: Sample) -> None:
    """What is worked out for a call without running it has the shape, dtype and strides that PyTorch gives."""
    ir = trace(Around(sample), IMAGES)
    compared = 0
    for call in ir.calls.values():
        if call.op != record.op:
            continue
        args, kwargs = map_aggregate((call.args, call.kwargs), lambda one: on_meta(ir, one))
        found = shapes.quick(record, args, kwargs)
        if found is not None:
            settings = {name: value for name, value in kwargs.items() if name != "padding_mode"}
            expected = call.op(*args, **settings)  # type: ignore[operator]
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            assert found.stride() == expected.stride()
            compared += 1
    SEEN[record.op] = SEEN.get(record.op, 0) + compared


def on_meta(ir: IR, value: Any) -> Any:
    """An argument of a call with meta tensors for nodes and for the tensors of layers."""
    if isinstance(value, TensorRef):
        return torch.empty_like(ir.tensor(value.name), device="meta")
    return value.meta["value"] if isinstance(value, Node) else value


def test_every_shape_rule_is_compared() -> None:
    for one in examples(shape=""):
        test_shapes_are_those_of_pytorch(*one.values)
    assert {record.op for record in OPERATORS.values() if record.shape is not None} == {
        op for op, n in SEEN.items() if n
    }


LAYERS = [
    pytest.param(record, kind, id=kind.__name__)
    for record in OPERATORS.values()
    for kind, form in record.layers.items()
    if form.leaf
]
ARGUMENTS: tuple[tuple[Any, ...], ...] = ((), (2,), (8,), (8, 4), (4, 8), (8, 6, 1), ((8, 4, 6),))
"""What a constructor of a layer is tried with."""


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(("record", "kind"), LAYERS)
def test_a_layer_is_the_call_that_its_record_says(record: Operator, kind: type[nn.Module]) -> None:
    """The function with the tensors and settings of the layer, by the names that the record gives, is the layer."""
    images = torch.rand(3, 8, 4, 6)
    single = (images, images.flatten(2), images.unsqueeze(2), images.mean((2, 3)), (8 * images).long())
    for inputs in (*((one,) for one in single), (images, images.cos())):
        for arguments in ARGUMENTS:
            try:
                layer = kind(*arguments).eval()
                expected = layer(*inputs)
            except (TypeError, ValueError, RuntimeError, IndexError, AssertionError):
                continue
            form = record.layers[kind].of(layer)
            assert form is not None
            tensors = {name: getattr(layer, name) for name in form.tensors}
            settings = {name: value for name, value in settings_of(layer, form).items() if name != "padding_mode"}
            settings |= {"training": False} if record.trained is not None else {}
            found = record.op(*(one.clone() for one in inputs), **tensors, **settings)  # type: ignore[operator]
            torch.testing.assert_close(tree_leaves(found), tree_leaves(expected))
            return
    pytest.fail(f"no arguments of {kind.__name__} and no input are known that it takes: add them to ARGUMENTS")


METHODS = sorted(
    name
    for name in dir(Tensor)
    if name.endswith("_") and not name.startswith("_") and name != "bernoulli_" and OPERATORS.of(name).axes is not None
)


@pytest.mark.parametrize("name", METHODS)
def test_methods_in_place_are_the_plain_ones_and_write(name: str) -> None:
    """``y.name_(...)`` gives the numbers of the plain spelling, in the memory of ``y``."""
    plain, x = getattr(Tensor, name.removesuffix("_"), None), torch.rand(3, 4, 6) + 0.5
    arguments: Any = next((args for args in ((), (x.cos(),), (0.5,), (0, 1)) if _takes(name, x, args)), None)
    if plain is None or arguments is None:
        pytest.skip("takes arguments of its own, which an example of the record has")
    written = x.clone()
    assert getattr(written, name)(*arguments) is written
    torch.testing.assert_close(written, plain(x, *arguments).to(written.dtype), equal_nan=True)
    assert OPERATORS.canonical(name) == OPERATORS.canonical(name.removesuffix("_"))


def _takes(name: str, x: Tensor, args: tuple[Any, ...]) -> bool:
    try:
        same = getattr(x, name.removesuffix("_"))(*args).shape == x.shape
        getattr(x.clone(), name)(*args)
    except Exception:
        return False
    return bool(same)


def test_every_record_has_an_example_for_every_rule() -> None:
    used: set[Any] = set()
    for record in OPERATORS.values():
        for sample in record.samples:
            ir = trace(Around(sample), IMAGES)
            used |= {call.op for call in ir.calls.values()}
    without = {op for op, record in OPERATORS.items() if (record.axes or record.onnx) and op not in used}
    assert {getattr(op, "__name__", op) for op in without} == {
        "recurrent",  # how ONNX has recurrent layers: the examples are those of lstm and the others
        "cuda",  # there is no such device
        "identity",  # leaves nothing in a graph; hooked layers have it
        "masked_select",  # is a part of an opaque method
    }


@pytest.mark.parametrize("rigid", [False, True])
def test_an_example_that_says_the_wrong_thing_is_noticed(rigid: bool, change: Callable[..., Any]) -> None:
    sample = Sample(lambda x: torch.flip(x, (1,)), rigid="moved to other places" if rigid else "")
    change(torch.flip, axes=OPERATORS[torch.abs].axes)  # forgets that entries move
    with pytest.raises((AssertionError, VerificationError)):
        test_sub_networks_compute_what_the_oracle_does(OPERATORS[torch.flip], sample)


IN_PARTS = {
    *("softsign", "tanhshrink", "softmin", "normalize", "local_response_norm", "dropout1d", "dropout3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_unpool1d", "norm", "split_with_sizes"),
    *("identity", "contiguous", "cpu", "cuda", "setitem"),
    *("type", "float", "double", "half", "bfloat16", "int", "long", "short", "bool"),
    *("lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell", "embedding_bag"),
}
"""What an exported program has as other operators: parts of it, ``to``, or for recurrent layers one of all weights."""


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_exported_programs_call_the_operators_of_the_records() -> None:
    """Each ATen operator that `torch.export` gives for an example is a spelling of the record of the example."""
    called: dict[Any, set[Any]] = {}
    for record, sample in (one.values for one in examples()):
        model = Around(sample).float()
        try:
            program = torch.export.export(model, (IMAGES.float(),))
        except RuntimeError:  # export does not take ``x.data``
            continue
        found = {operator_of(node) for node in program.graph.nodes if node.op == "call_function"}
        called.setdefault(record.op, set()).update(found)
    assert {getattr(op, "__name__", op) for op, found in called.items() if op not in found} == IN_PARTS


def operator_of(node: Node) -> Any:
    """The canonical operator of a node of an exported program."""
    target, _, _ = in_python(node.target, node.args, node.kwargs)
    name = getattr(target, "__name__", "")
    return OPERATORS.canonical(name if name and getattr(Tensor, name, None) is target else target)


ROOT = Path(__file__).parents[3]
TORCH = ("torch.", "F.", "nn.", "operator.")
TYPES = re.compile(
    r"torch\.(float|int|uint|bool|bfloat|half|double|long|dtype|device|Tensor|Size|finfo|strided)|nn\.Module$"
)
HOMES = [ROOT / name for name in ("passes", "runtime", "search", "bnas")]
OUTSIDE = sorted(
    path for home in HOMES for path in home.rglob("*.py") if "ops" not in path.parts and "testing" not in path.parts
)


ALLOWED = {
    "passes/frontend/opaque.py": "makes random numbers",
    "passes/frontend/recording.py": "wrappers of models, which are no layers",
    "passes/frontend/recorder.py": "base classes of layers with a mode, which users' layers have too",
}
"""Modules that name several functions and state no fact of an operator."""


def tables(source: str) -> list[str]:
    """Displays of at least two functions or layers of torch: sets, tuples, lists, and keys of dicts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        members = node.elts if isinstance(node, ast.Set | ast.Tuple | ast.List) else []
        members = [key for key in node.keys if key is not None] if isinstance(node, ast.Dict) else members
        names = [ast.unparse(one) for one in members if isinstance(one, ast.Attribute)]
        if sum(name.startswith(TORCH) and not TYPES.match(name) for name in names) > 1:
            found.append(f"line {node.lineno}: {', '.join(names)}")
    return found


def test_no_table_of_operators_stands_outside_their_records() -> None:
    known = {path.relative_to(ROOT).as_posix(): tables(path.read_text(encoding="utf-8")) for path in OUTSIDE}
    assert {path for path, found in known.items() if found} - ALLOWED.keys() == set()


def test_a_table_of_operators_is_noticed() -> None:
    assert tables("JOINS = frozenset({torch.cat, torch.stack})")
    assert tables("KINDS = {nn.Conv2d: 1, nn.Linear: 2}")
    assert not tables("KINDS = (torch.float32, torch.float64)")
    assert inspect.getsource(tables)


def test_records_are_frozen_without_a_rule(change: Callable[..., Any]) -> None:
    change(torch.tanh, axes=None)
    types = analyse(trace(Around(Sample(torch.tanh)), IMAGES))
    assert not types.free_symbols()
    assert any("operator tanh has no rule" in one.reason for one in types.pins)
