"""Pipelines of passes: their order, what the runner checks, and passes of a user that change the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, EXACT
from torch import Tensor, nn

from bnas.passes import PIPELINE, Analysis, Diagnostic, Pass, PassError, PassResult, Pipeline, Subnet, VerificationError
from bnas.passes.oracle.detour import OracleWarning
from bnas.runtime import SuperNetwork, verify
from bnas.testing import (
    Layer,
    Network,
    Residual,
    Shuffle,
    Twice,
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
    networks,
    subnets,
)


def start(network: Network | None = None) -> Analysis:
    network = network or Network(Layer(8), (Residual(12, norm=True), Twice()))
    return Analysis(network.module, network.example_inputs, ELASTICITY)


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    def apply(self, analysis: Analysis) -> PassResult:
        return PassResult(analysis, False)


@dataclass(frozen=True)
class Other(Nothing):
    name: ClassVar[str] = "other"


# order


def test_pipelines_are_put_together_by_name() -> None:
    names = ("trace", "type-axes", "find-blocks", "find-kernels", "choose")
    assert PIPELINE.names == names
    assert PIPELINE.after("trace", Nothing(), Other()).names == ("trace", "nothing", "other", *names[1:])
    assert PIPELINE.before("trace", Nothing()).names == ("nothing", *names)
    assert PIPELINE.replace("choose", Nothing()).names == (*names[:4], "nothing")
    assert PIPELINE.without("find-blocks").names == ("trace", "type-axes", "find-kernels", "choose")
    assert PIPELINE.names == names


@dataclass(frozen=True)
class Forgetful(Pass):
    """Returns nothing."""

    name: ClassVar[str] = "forgetful"

    def apply(self, analysis: Analysis) -> Any:
        """Forget the result."""


@dataclass(frozen=True)
class Nameless(Pass):
    """Has no name."""

    def apply(self, analysis: Analysis) -> PassResult:
        return PassResult(analysis, False)


def test_what_is_no_whole_pass_is_refused() -> None:
    with pytest.raises(PassError, match=r"'forgetful': apply returned NoneType; return PassResult\(analysis"):
        SuperNetwork.from_model(nn.Linear(2, 2), torch.zeros(1, 2), pipeline=PIPELINE.after("trace", Forgetful()))
    with pytest.raises(PassError, match=r"Nothing'> is no pass: give an object .* PIPELINE\.after\('trace', MyPass"):
        PIPELINE.after("trace", Nothing)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="Nameless has no name; give it one"):
        PIPELINE.after("trace", Nameless())


def test_a_name_stands_once_and_must_be_there() -> None:
    with pytest.raises(PassError, match="the pass 'nothing' is in the pipeline twice: trace, nothing, type-axes"):
        PIPELINE.after("trace", Nothing()).after("choose", Nothing())
    for change in (PIPELINE.after, PIPELINE.before, PIPELINE.replace):
        with pytest.raises(PassError, match="there is no pass 'chose'; there are trace, type-axes"):
            change("chose", Nothing())
    with pytest.raises(PassError, match="there is no pass 'nothing'"):
        PIPELINE.without("nothing")


@given(network=networks())
def test_a_second_run_changes_nothing(network: Network) -> None:
    first = PIPELINE.run(start(network))
    told: list[str] = []
    again = PIPELINE.run(first, told.append)
    assert [again.ir, again.types, again.blocks, again.choices] == [first.ir, first.types, first.blocks, first.choices]
    assert [text.partition("\n")[0] for text in told[1:]] == [f"# after {name}: no change" for name in PIPELINE.names]


# promises


@dataclass(frozen=True)
class Does(Pass):
    """Does what a test tells it to."""

    does: Callable[[Analysis], PassResult]
    name: ClassVar[str] = "does"
    gives: ClassVar[tuple[str, ...]] = ("ir",)

    def apply(self, analysis: Analysis) -> PassResult:
        return self.does(analysis)


def graph_without_values(analysis: Analysis) -> PassResult:
    graph, _ = analysis.ir.copy_graph()
    for node in graph.nodes:
        node.meta.clear()
    return PassResult(analysis.having(ir=replace(analysis.ir, graph=graph, calls={})).without("types"), True)


def half_a_change(analysis: Analysis) -> PassResult:
    graph, _ = analysis.ir.copy_graph()
    return PassResult(analysis.having(ir=analysis.ir.with_graph(graph)), True)


def bound_choice(analysis: Analysis) -> PassResult:
    analysis.types.pin(next(iter(analysis.choices.symbols.values())), "too late")
    return PassResult(analysis, True)


def wrong_sizes(analysis: Analysis) -> PassResult:
    node = next(iter(reversed(analysis.types.values)))
    analysis.types.values[node.prev] = analysis.types.values[node.prev][:-1]
    return PassResult(analysis, True)


def unknown_module(analysis: Analysis) -> PassResult:
    graph, _ = analysis.ir.copy_graph()
    next(node for node in graph.nodes if node.op == "call_module").target = "elsewhere"
    return PassResult(analysis.having(ir=replace(analysis.ir, graph=graph, calls={})).without("types", "blocks"), True)


def module_with_weights(analysis: Analysis) -> PassResult:
    graph, _ = analysis.ir.copy_graph()
    return PassResult(analysis.with_graph(graph, {"more": nn.PReLU()}), True)


@pytest.mark.parametrize(
    ("place", "does", "reason"),
    [
        ("trace", lambda a: PassResult(replace(a, rewritten=True), False), "nothing is modified, but returns another"),
        ("trace", lambda a: PassResult(replace(a, model=nn.Identity()), True), "replaced the model"),
        ("trace", lambda a: PassResult(a.without("ir"), True), "promises ir but does not provide it"),
        ("trace", graph_without_values, "has no value: add the graph to the analysis with with_graph"),
        ("trace", module_with_weights, "own module more has tensors, which would be neither trained nor saved"),
        ("trace", unknown_module, "calls 'elsewhere', which is not a module of the model"),
        ("type-axes", half_a_change, "the axis types are those of another graph"),
        ("type-axes", wrong_sizes, "are not of its shape"),
        ("choose", bound_choice, r"the width 0\.0\.0 was bound after it had become a choice"),
    ],
)
def test_a_pass_that_breaks_a_promise_is_named(place: str, does: Callable[[Analysis], PassResult], reason: str) -> None:
    with pytest.raises(PassError, match=f"'does': .*{reason}"):
        PIPELINE.after(place, Does(does)).run(start())
    assert PIPELINE.after(place, Nothing()).run(start()).choices.space.widths


@dataclass(frozen=True)
class AtLeastOneBlock(Nothing):
    """Promises that a block is found."""

    def broken(self, before: Analysis, after: Analysis) -> Iterator[str]:
        if not after.blocks.found:
            yield "there is no skippable block"


def test_passes_may_promise_more() -> None:
    pipeline = PIPELINE.after("find-blocks", AtLeastOneBlock())
    assert pipeline.run(start()).blocks.found
    with pytest.raises(PassError, match="'nothing': there is no skippable block"):
        pipeline.run(start(Network(Layer(8))))


def test_what_a_pass_needs_must_be_there() -> None:
    with pytest.raises(PassError, match="'choose' needs blocks, which no earlier pass provides"):
        PIPELINE.without("find-blocks").run(start())
    with pytest.raises(
        PassError, match="'find-blocks' needs types, which no earlier pass provides, or which a pass between"
    ):
        PIPELINE.after("type-axes", FunctionalRelu()).run(start())
    with pytest.raises(
        PassError, match="no pass of the pipeline provides choices; its passes are trace, type-axes, find-blocks"
    ):
        SuperNetwork.from_model(nn.ReLU(), torch.zeros(2, 3), pipeline=PIPELINE.without("choose"))


def test_an_error_is_told_with_the_pass() -> None:
    def fails(analysis: Analysis) -> PassResult:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone") as caught:
        PIPELINE.after("type-axes", Does(fails)).run(start())
    assert caught.value.__notes__ == ["while running the pass 'does' after trace, type-axes"]


# refusals and vetoes


@dataclass(frozen=True)
class PinFirst(Pass):
    """A user's veto: the first convolution stays whole."""

    name: ClassVar[str] = "pin-first"
    needs: ClassVar[tuple[str, ...]] = ("types",)

    def apply(self, analysis: Analysis) -> PassResult:
        analysis.types.pin_axes(analysis.types.tensor("0.0.0.weight"), "the user's veto")
        return PassResult(analysis, True, (Diagnostic("0.0.0", "asked for"),))


def test_a_pass_may_pin_and_is_heard() -> None:
    plain, pinned = PIPELINE.run(start()), PIPELINE.after("type-axes", PinFirst()).run(start())
    assert pinned.choices.space.widths.keys() == plain.choices.space.widths.keys() - {"0.0.0"}
    told = [str(one) for one in pinned.refusals["pin-first"]]
    assert told[0] == "0.0.0: asked for"
    assert any(line.endswith("weight: the user's veto") for line in told[1:])
    assert set(pinned.refusals["pin-first"]) <= set(pinned.diagnostics)


# passes that change the graph


def functions_for(analysis: Analysis, old: Any, new: Any) -> PassResult:
    """Every call of one activation as another's, of the same name, since blocks are named by their values."""
    graph, copies = analysis.ir.copy_graph()
    matches = [node for node, call in analysis.ir.calls.items() if call.op is old]
    for match in matches:
        node, settings = copies[match], {"inplace": True} if analysis.ir.writes(match) else {}
        with graph.inserting_before(node):
            made = graph.call_function(new, (node.args[0],), settings)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        made.name = node.name
    return PassResult(analysis.with_graph(graph), True) if matches else PassResult(analysis, False)


@dataclass(frozen=True)
class FunctionalRelu(Pass):
    """``nn.ReLU`` as ``F.relu``: computes the same."""

    name: ClassVar[str] = "functional-relu"

    def apply(self, analysis: Analysis) -> PassResult:
        return functions_for(analysis, F.relu, F.relu)


@dataclass(frozen=True)
class GeluForRelu(Pass):
    """Claims to keep the outputs, and does not."""

    name: ClassVar[str] = "gelu-for-relu"

    def apply(self, analysis: Analysis) -> PassResult:
        return functions_for(analysis, F.relu, F.gelu)


@dataclass(frozen=True)
class Softened(GeluForRelu):
    """Says that it changes the outputs."""

    keeps_outputs: ClassVar[bool] = False


@given(network=networks(), data=st.data())
def test_a_rewritten_graph_works_everywhere(network: Network, data: st.DataObject) -> None:
    before = copy.deepcopy(network.module)
    supernet = SuperNetwork.from_model(
        network.module, network.example_inputs, ELASTICITY, pipeline=PIPELINE.after("trace", FunctionalRelu())
    )
    plain = SuperNetwork.from_model(network.module, network.example_inputs, ELASTICITY)
    assert supernet.space == plain.space
    subnet, inputs = data.draw(subnets(supernet.space)), network.example_inputs
    assert supernet.costs(subnet) == plain.costs(subnet)
    assert_onnx_is_extracted(supernet, subnet, inputs)
    assert not any(type(module) is nn.ReLU for module in supernet.extract(subnet).modules())
    torch.testing.assert_close(network.module.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert str(network.module) == str(before)
    supernet.double()  # in single precision, the rounding of what cancels exceeds any useful bound
    assert_maximal_is_original(supernet, inputs.double())
    assert_extracted_is_oracle(supernet, subnet, inputs.double(), tolerance=1e-10)  # see ROUNDED of test_properties
    assert_program_is_extracted(supernet, subnet, inputs.double(), tolerance=EXACT)
    assert_gradients_match(supernet, subnet, inputs.double(), tolerance=EXACT)


def test_an_added_node_is_no_output_of_the_module_before_it() -> None:
    """The oracle hooks the outputs of modules: that of the convolution is not the region's end."""
    network = Network(Layer(4, kernel=1), (Shuffle(1, True), Twice(1, False, "relu")))
    supernet = SuperNetwork.from_model(
        network.module, network.example_inputs, ELASTICITY, pipeline=PIPELINE.after("trace", FunctionalRelu())
    )
    (block,) = supernet.space.blocks
    with pytest.warns(OracleWarning, match=block):
        assert_extracted_is_oracle(supernet, Subnet({}, frozenset({block})), network.example_inputs)


def test_changed_outputs_are_noticed_unless_they_are_meant() -> None:
    with pytest.raises(PassError, match=r"'gelu-for-relu': it promises to keep the outputs, but they differ by \d"):
        PIPELINE.after("trace", GeluForRelu()).run(start())
    assert PIPELINE.after("trace", Softened()).run(start()).rewritten
    assert not PIPELINE.after("trace", FunctionalRelu()).run(start()).rewritten


def with_gelu(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.ReLU:
                setattr(parent, name, nn.GELU())
    return twin


@dataclass(frozen=True)
class DropAfterRelu(Pass):
    """A dropout after every ``nn.ReLU``, for training: a module that the model does not have."""

    name: ClassVar[str] = "drop-after-relu"

    def apply(self, analysis: Analysis) -> PassResult:
        graph, copies = analysis.ir.copy_graph()
        matches = [copies[node] for node, call in analysis.ir.calls.items() if call.op is F.relu]
        for number, node in enumerate(matches):
            with graph.inserting_after(node):
                drop = graph.create_node("call_module", f"_drop_{number}", (node,))
            node.replace_all_uses_with(drop, delete_user_cb=lambda user, own=drop: user is not own)
        modules = {f"_drop_{number}": nn.Dropout(0.5) for number in range(len(matches))}
        return PassResult(analysis.with_graph(graph, modules), True)


def test_a_pass_may_add_modules_without_tensors() -> None:
    network = Network(Layer(8), (Residual(12), Twice()))
    pipeline = PIPELINE.after("trace", DropAfterRelu())
    supernet = SuperNetwork.from_model(network.module, network.example_inputs, ELASTICITY, pipeline=pipeline)
    subnet, inputs = supernet.space.minimal(), network.example_inputs
    assert_maximal_is_original(supernet, inputs)
    assert_extracted_is_oracle(supernet, subnet, inputs)
    assert_program_is_extracted(supernet.train(), subnet, inputs)
    program = supernet.program(subnet)
    assert not torch.equal(program(inputs), program(inputs))
    assert not any(isinstance(module, nn.Dropout) for module in network.module.modules())


def test_what_a_model_then_computes_is_the_graph(tmp_path: Any) -> None:
    network, pipeline = Network(Layer(8), (Residual(12, norm=True),)), PIPELINE.after("trace", Softened())
    supernet = SuperNetwork.from_model(network.module, network.example_inputs, ELASTICITY, pipeline=pipeline)
    inputs, twin = network.example_inputs, with_gelu(network.module)
    torch.testing.assert_close(supernet(inputs), twin(inputs), rtol=EXACT, atol=1e-6)
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(supernet(inputs), network.module(inputs), rtol=0, atol=0)
    subnet = supernet.space.minimal()
    assert verify(twin, supernet, subnet, inputs) < 1e-12
    with pytest.raises(VerificationError, match="differs from the original model"):
        verify(network.module, supernet, subnet, inputs)
    supernet.save(tmp_path)
    loaded = SuperNetwork.load(tmp_path, copy.deepcopy(network.module), pipeline=pipeline)
    torch.testing.assert_close(loaded(inputs), supernet(inputs), rtol=0, atol=0)


def test_a_graph_that_does_not_fit_names_the_node() -> None:
    def one_channel_less(analysis: Analysis) -> PassResult:
        graph, _ = analysis.ir.copy_graph()
        for node in [node for node in graph.nodes if node.target == "0.0.0"]:
            with graph.inserting_after(node):
                less = graph.call_method("narrow", (node, 1, 0, 7))
            node.replace_all_uses_with(less, delete_user_cb=lambda user, own=less: user is not own)
        return PassResult(analysis.with_graph(graph), True)

    with pytest.raises(RuntimeError, match="channel dimensions") as caught:
        PIPELINE.after("trace", Does(one_channel_less)).run(start())
    assert any("at the node" in note and "0.1.expand" in note for note in caught.value.__notes__)


# rules


def test_a_wrong_rule_is_caught_by_verification(change: Callable[..., Any]) -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.flip(torch.relu(self.first(x)), (1,)))

    inputs, model = torch.randn(2, 3, 4, 4), Flipped().eval()
    change(torch.flip, axes=lambda types, call: types.type(call.args[0]))  # keeps the order: wrong
    supernet = SuperNetwork.from_model(model, inputs, ELASTICITY)
    assert verify(model, supernet, supernet.space.maximal(), inputs) < 1e-12
    with pytest.raises(VerificationError, match="a rule is wrong"):
        verify(model, supernet, supernet.space.minimal(), inputs)


# the text of an analysis


def test_an_analysis_as_text() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.cat([x, F.relu(self.body(x) + x)], 1)
            return self.last(x).flip(1)

    told: list[str] = []
    PIPELINE.run(Analysis(Small().eval(), torch.zeros(2, 3, 4, 4), ELASTICITY), told.append)
    assert [text.partition("\n")[0] for text in told] == ["# at first", *(f"# after {n}" for n in PIPELINE.names)]
    assert told[0] == "# at first\nSmall: not traced yet"
    assert "stem = conv2d(x, stem.*) : [B, 8, 4, 4]\n" in told[1]
    lines = told[-1].splitlines()
    assert "x = input : [B, 3, 4, 4]" in lines
    assert "add = add(body, stem) : [B, stem:8, 4, 4]" in lines
    assert "cat = cat((stem, relu), 1) : [B, 2*stem:8, 4, 4]" in lines
    assert any(line.startswith("last = conv2d(cat, last.*) : [B, 2, 4, 4]  # rigid ") for line in lines)
    assert any("the input of the model fixes it" in line and line.startswith("stem = ") for line in lines)
    assert "block add: stem -> add" in lines
    assert "width stem: 2, 4, 6, 8" in lines
    assert len([line for line in lines if " = " in line]) == 8
    assert any(line.startswith("left unchanged by type-axes: ") for line in lines)
    assert not Pipeline(()).run(Analysis(Small(), torch.zeros(2, 3, 4, 4))).has("ir")
