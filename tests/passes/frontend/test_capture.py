"""A capture records what forward calls: plain Python answers its questions, writes are nodes, and sizes stay free."""

from __future__ import annotations

import builtins
import importlib.util
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
import torch.fx._symbolic_trace as symbolic_trace
import torch.nn.functional as F
import torchvision
from capture_cases import Between, image
from torch import Tensor, nn

from bnas.passes import IR, CaptureError, Elasticity, InputError, Subnet, analyse, choose, find_blocks, trace
from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.assembly.slot import Copies
from bnas.passes.axes.terms import K
from bnas.passes.frontend.fidelity import Fidelity
from bnas.passes.frontend.functions import BATCH
from bnas.runtime import SuperNetwork


class Net(Between):
    """Layers and tensors for `step` to use, between a convolution and another one."""

    def __init__(self, step: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(step)
        self.norm, self.gamma = nn.BatchNorm2d(8), nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("table", torch.rand(8, 1, 1))
        self.register_buffer("order", torch.arange(7, -1, -1))


def maximal(ir: IR) -> nn.Module:
    """The traced model as a module of its own."""
    types = analyse(ir)
    choices = choose(types, find_blocks(types), Elasticity())
    return Skeleton.of(types, choices).build(choices.space.maximal(), Copies()).eval()


def assert_captured(net: nn.Module) -> IR:
    """The graph computes what the model does, at any batch size; returns the graph."""
    ir = trace(net.eval(), image())
    ir.graph.lint()
    module = maximal(ir)
    for batch in (1, 2, 5):
        torch.testing.assert_close(module(image(batch)), net(image(batch)), rtol=0, atol=0)
    return ir


def counts_its_calls(net: Net, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return x * net.calls


def test_another_graph_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.passes.frontend.front.compare", lambda *_: Fidelity())  # it would tell, too
    with pytest.raises(AssertionError, match="not equal"):
        assert_captured(Net(counts_its_calls))


# questions about values are answered with plain Python


def unpacked_shape(net: Net, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, channels, height * width).reshape(batch, channels // 2 * 2, width, height)


def size_by_axis(net: Net, x: Tensor) -> Tensor:
    return x.reshape(x.size(0), x.size(1), -1).unsqueeze(-1)


def batch_and_positions_together(net: Net, x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    rows = x.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def batch_divided_again(net: Net, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])
    batch = int(rows.shape[0] / (x.shape[2] * x.shape[3]))
    return rows.view(batch, x.shape[2] * x.shape[3], x.shape[1]).transpose(1, 2).unsqueeze(3)


def size_of_the_batch_as_a_number(net: Net, x: Tensor) -> Tensor:
    return x / x.shape[0] + x.size(0) * 2


def batch_expanded(net: Net, x: Tensor) -> Tensor:
    return x + net.gamma.expand(x.size(0), -1, -1, -1)


def types_and_lengths(net: Net, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    assert torch.is_tensor(x)
    assert not isinstance(x, nn.Parameter)
    assert len(x.shape) == x.ndim == x.dim() == 4
    assert len(x) == len(x[:, :1])
    assert x.dtype == torch.float32
    assert x.device == net.gamma.device
    assert not x.is_cuda
    assert x.numel() == x.size(0) * 8 * x.shape[2] * x.shape[3]
    return x


def branch_on_the_shape(net: Net, x: Tensor) -> Tensor:
    if x.ndim == 4 and x.size(1) % 2 == 0:
        return net.inner(x)
    raise AssertionError("the other branch")


def several_values(net: Net, x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    parts = torch.split(x, [2, 6], 1)
    return torch.cat([right, left], 1) + torch.cat([*parts], 1)


def own_device_and_type(net: Net, x: Tensor) -> Tensor:
    x = x.to(x.device, non_blocking=True).to(net.gamma.dtype)
    return x.to(device=x.device, dtype=net.gamma.dtype).type_as(net.gamma)


def written_in_place(net: Net, x: Tensor) -> Tensor:
    x += 1
    x.relu_()
    F.hardtanh(x, -1.0, 1.0, True)
    return x


@pytest.mark.parametrize(
    "step",
    [
        unpacked_shape,
        size_by_axis,
        batch_and_positions_together,
        batch_divided_again,
        size_of_the_batch_as_a_number,
        batch_expanded,
        types_and_lengths,
        branch_on_the_shape,
        several_values,
        own_device_and_type,
        written_in_place,
    ],
)
def test_values_are_carried(step: Callable[[Any, Tensor], Tensor]) -> None:
    ir = assert_captured(Net(step))
    assert not ir.diagnostics


@pytest.mark.parametrize("size", [(4, 6), (6, 4), (5, 5)])
def test_sizes_that_a_branch_compares_are_static(size: tuple[int, int]) -> None:
    net = Net(lambda net, x: net.inner(x) if x.shape[2] > x.shape[3] else -x).eval()
    inputs = torch.randn(2, 3, *size)
    ir = trace(net, inputs)
    assert len({"height", "width"} & set(ir.sizes.names)) < 2
    whole = SuperNetwork.from_model(net, inputs)
    program = whole.program(whole.space.maximal())
    for height, width in ((4, 6), (6, 4), (5, 5), (9, 3), (3, 9)):
        other = torch.randn(2, 3, height, width)
        try:
            found = program(other)
        except InputError:
            continue
        torch.testing.assert_close(found, net(other), rtol=0, atol=0)


def test_the_batch_stays_symbolic() -> None:
    ir = assert_captured(Net(size_of_the_batch_as_a_number))
    assert str(BATCH) not in maximal(ir).code
    (size,) = [node for node in ir.graph.nodes if node.target == "size"]
    assert size.args[0].op == "placeholder"


def test_types_stay_in_the_graph_and_devices_follow_the_input() -> None:
    ir = assert_captured(Net(own_device_and_type))
    assert "to" in [node.target for node in ir.graph.nodes]
    written = [leaf for node in ir.graph.nodes for leaf in (*node.args, *node.kwargs.values())]
    assert not any(isinstance(leaf, torch.device) for leaf in written)


def other_types_stay(net: Net, x: Tensor) -> Tensor:
    wide = x.to(torch.float64)
    return (wide * 2).to(x) + x.to(x.dtype, copy=True) + wide.to(x.dtype, non_blocking=True)


def test_what_changes_the_type_or_copies_stays_in_the_graph() -> None:
    ir = assert_captured(Net(other_types_stay))
    assert [node.target for node in ir.graph.nodes].count("to") == 4


def test_sizes_that_nobody_reads_are_gone() -> None:
    ir = trace(Net(unpacked_shape).eval(), image())
    assert all(node.users or node.op == "output" for node in ir.graph.nodes)


# tensors that forward reads


def test_buffers_are_read_at_every_call() -> None:
    net = Net(lambda net, x: (x * net.table)[:, net.order])
    module = maximal(assert_captured(net))
    before = module(image())
    module.table.mul_(2)
    net.table.mul_(2)
    torch.testing.assert_close(module(image()), net(image()), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(module(image()), before)


def test_functional_norm_with_a_modules_tensors() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        n = net.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)

    net = Net(step)
    net.norm.running_mean.normal_()
    names = {node.target for node in assert_captured(net).graph.nodes if node.op == "get_attr"}
    assert names == {f"norm.{name}" for name in ("running_mean", "running_var", "weight", "bias")}


def constants(net: Net, x: Tensor) -> Tensor:
    mask = torch.zeros(4, 6, device=x.device)
    mask[1:, 2:] = float("-inf")
    scale = torch.tensor([1.0, 2.0] * 4).view(8, 1, 1)
    return (x + mask).exp() * scale + scale


def test_tensors_made_in_forward_are_real_and_become_constants() -> None:
    net = Net(constants)
    ir = assert_captured(net)
    assert len(ir.constants) == 2
    assert not [name for name in vars(net) if "constant" in name]
    assert not any(tensor.is_meta for tensor in ir.constants.values())
    axes = analyse(ir).tensors
    assert all(isinstance(term, K) for name in ir.constants for term in axes[name])


def test_a_tensor_of_the_batchs_own_size_is_made_by_a_node() -> None:
    ir = assert_captured(Net(lambda net, x: (torch.eye(x.shape[0]) @ x.flatten(1)).view(x.shape)))
    assert "eye" in [node.name for node in ir.graph.nodes]
    assert not ir.constants


def test_tensors_made_with_the_size_of_the_batch_follow_it() -> None:
    net = Net(lambda net, x: net.inner(x) + torch.ones(x.shape[0], 1, 1, 1) + x.new_full((len(x), 1, 1, 1), 2.0)).eval()
    ir = assert_captured(net)
    assert not ir.constants
    whole = SuperNetwork.from_model(net, image())
    batch = image(5)
    torch.testing.assert_close(whole.program(whole.space.maximal())(batch), net(batch))


def test_batch_sizes_in_views_with_an_open_end_are_those_of_the_program() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        for _ in range(2):
            x = net.inner(x).flatten(2).transpose(1, 2)
            x = x.reshape(x.shape[0], -1, 8).transpose(1, 2).unflatten(2, (4, 6))
        return x

    net = Net(step).eval()
    whole = SuperNetwork.from_model(net, image(), {"min_width": 2, "divisor": 2})
    for subnet in (whole.space.maximal(), Subnet(whole.space.minimal().widths)):
        program = whole.program(subnet)
        assert all(source.graph is program.graph for node in program.graph.nodes for source in node.all_input_nodes)
        torch.testing.assert_close(program(image(5)), whole.extract(subnet)(image(5)))


class DropPath(nn.Module):
    """Stochastic depth as many write it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5) * 2


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.path = nn.Conv2d(3, 8, 1), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.path(self.conv(x)), 0.25, self.training)


def test_regularisers_and_functional_dropouts_follow_the_mode_of_the_program() -> None:
    whole = SuperNetwork.from_model(Dropping().eval(), image())
    assert not [d for d in whole.diagnostics if "training" in d.reason]
    program, batch = whole.program(whole.space.maximal()), image(64)
    expected = whole.model.conv(batch)
    torch.testing.assert_close(program(batch), expected)
    whole.train()
    torch.manual_seed(0)
    dropped = whole.program(whole.space.maximal())(batch)
    lost = (dropped.flatten(1) == 0).all(1)
    assert 10 < lost.sum() < 54
    assert 0.2 < (dropped[~lost] == 0).float().mean() < 0.3
    small = whole.extract(whole.space.minimal())
    assert (small.train()(batch).flatten(1) == 0).all(1).any()
    assert not (small.eval()(batch).flatten(1) == 0).all(1).any()


@pytest.mark.parametrize("step", [lambda net, x: torch.stack([*x]), lambda net, x: sum(x.unbind(0))[None]])
def test_samples_one_by_one_make_the_batch_static(step: Any) -> None:
    net = Net(step).eval()
    ir = trace(net, image())
    assert "batch" not in ir.sizes.names
    (told,) = [told for told in ir.diagnostics if told.place == "x[0]"]
    assert "the batch is fixed" in told.reason
    whole = SuperNetwork.from_model(net, image())
    for module in (whole.program(whole.space.maximal()), whole.extract(whole.space.maximal())):
        torch.testing.assert_close(module(image()), net(image()), rtol=0, atol=0)
        with pytest.raises(InputError, match=r"input 'x': axis 0 has size 3, expected 2\. .*the batch is fixed"):
            module(image(3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x).mean((2, 3))).relu())


def test_tied_parameters_have_one_name() -> None:
    ir = assert_captured(Tied())
    assert ir.aliases["second.weight"] == ir.aliases["first.weight"] == "first.weight"
    types = analyse(ir)
    assert "second.weight" not in types.tensors
    assert len(types.users["first.weight"]) == 2
    module = maximal(ir)
    assert module.second.weight is module.first.weight


# what cannot be traced


class Undecided(nn.Module):
    """Branches on the values of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(8, 8, 1), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.scale
        if y.mean() > 0:  # the line to name
            return y + x
        return y


def undecided(step: Callable[[Any, Tensor], Tensor]) -> Net:
    net = Net(step)
    net.odd, net.inner, net.other = Undecided(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    return net


def test_a_submodule_that_branches_stays_rigid_and_the_rest_elastic() -> None:
    net = undecided(lambda net, x: net.other(net.odd(net.inner(x))))
    ir = assert_captured(net)
    (told,) = ir.diagnostics
    assert told.place == "odd"
    assert "opaque, its inputs and outputs are rigid: cannot capture module 'odd' (Undecided)" in told.reason
    assert __file__ in told.reason
    assert "if y.mean() > 0:  # the line to name" in told.reason
    types = analyse(ir)
    assert choose(types, find_blocks(types), Elasticity(min_width=1, divisor=1)).space.widths.keys() == {
        "first",
        "other",
    }
    assert "odd.scale" not in types.tensors


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda net, x: net.odd(net.odd(x)), id="called-twice"),
        pytest.param(lambda net, x: net.odd(x) * net.odd.scale, id="its-parameter-read-after"),
        pytest.param(lambda net, x: net.odd(x * net.odd.scale), id="its-parameter-read-before"),
        pytest.param(lambda net, x: x + net.odd(x), id="in-a-residual-block"),
    ],
)
def test_an_opaque_submodule_in_other_places(step: Any) -> None:
    ir = assert_captured(undecided(step))
    assert {told.place for told in ir.diagnostics} == {"odd"}


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.odd = nn.Conv2d(8, 8, 1), Undecided()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"pair": (self.odd(self.before(x)), x)}


def test_only_the_innermost_module_becomes_opaque() -> None:
    net = Net(lambda net, x: operator.add(*net.around(x)["pair"]))
    net.around = Around()
    ir = assert_captured(net)
    assert [told.place for told in ir.diagnostics] == ["around.odd"]


class Pair(Undecided):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = super().forward(x)
        return y, {"rows": y.flatten(2)}


def test_an_opaque_module_may_return_a_structure() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        first, others = net.odd(x)
        return first + others["rows"].view(first.shape)

    net = undecided(step)
    net.odd = Pair()
    assert_captured(net)


def test_a_model_that_branches_itself_is_refused_by_line() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError) as caught:
        trace(Net(step).eval(), image())
    message = str(caught.value)
    assert "cannot capture the model (Net)" in message
    assert f"{__file__}:" in message
    assert "return x if x.sum() > 0 else -x" in message
    assert "into a submodule or method" in message


def test_a_folder_called_torch_is_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "torch" / "model.py"
    path.parent.mkdir()
    path.write_text(
        "from torch import nn\n\nclass Odd(nn.Module):\n"
        "    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    spec = importlib.util.spec_from_file_location("odd_model", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    with pytest.raises(CaptureError, match=r"torch.model\.py:5: return x if x\.sum\(\) > 0"):
        trace(module.Odd(), image())


def doubles(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


@pytest.mark.parametrize("pre", [True, False])
def test_forward_hooks_are_recorded(pre: bool) -> None:
    net = Net(lambda net, x: net.inner(x))
    net.inner.register_forward_pre_hook(lambda m, x: (x[0] * 2,)) if pre else net.inner.register_forward_hook(doubles)
    ir = assert_captured(net)
    assert not ir.diagnostics
    assert [node.target for node in ir.graph.nodes].count(operator.mul) == 1
    assert analyse(ir).free_symbols()


class ReadsTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training) if self.training else x * 3


def test_a_branch_by_mode_is_kept_as_a_graph_of_training_mode() -> None:
    net = Net(lambda net, x: net.drop(x)).train()
    net.drop = ReadsTraining()
    ir = trace(net, image())
    assert net.training
    assert net.drop.training
    assert not ir.diagnostics
    assert ir.trained is not None
    assert F.dropout in [node.target for node in ir.trained.graph.nodes]
    assert F.dropout not in [node.target for node in ir.graph.nodes]
    torch.testing.assert_close(maximal(ir)(image()), net.eval()(image()), rtol=0, atol=0)


# nothing is left behind


@torch.fx.wrap
def wrapped(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize("fails", [False, True])
def test_the_table_of_wrapped_functions_is_put_back(fails: bool) -> None:
    before = dict(symbolic_trace._wrapped_fns_to_patch)
    assert any(name == "wrapped" for _, name in before)
    net = Net(lambda net, x: x if fails and x.sum() > 0 else wrapped(x)).eval()
    if fails:
        with pytest.raises(CaptureError):
            trace(net, image())
    else:
        assert wrapped not in [node.target for node in trace(net, image()).graph.nodes]
    assert symbolic_trace._wrapped_fns_to_patch == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_are_left_as_they_were(fails: bool) -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        x = net.norm(constants(net, net.odd(x)))
        return x if fails and x.sum() > 0 else x + 1

    net = undecided(step).train()
    net.first.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tables = {path: {key: value for key, value in vars(m).items()} for path, m in net.named_modules()}
    state, call = torch.get_rng_state(), nn.Module.__call__
    if fails:
        with pytest.raises(CaptureError):
            trace(net, image())
    else:
        trace(net, image())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    for path, module in net.named_modules():
        assert vars(module).keys() == tables[path].keys()
        assert all(vars(module)[key] is value for key, value in tables[path].items())
    assert not any(parameter.is_meta for parameter in net.parameters())
    assert nn.Module.__call__ is call  # fx patches it while tracing


def test_a_real_model_with_wrapped_helpers() -> None:
    model = torchvision.models.swin_t(weights=None).eval()
    before = dict(symbolic_trace._wrapped_fns_to_patch)
    inputs = torch.randn(2, 3, 64, 64)
    module = maximal(trace(model, inputs))
    assert symbolic_trace._wrapped_fns_to_patch == before
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), model(inputs))
        torch.testing.assert_close(module(inputs[:1]), model(inputs[:1]))


SCALARS = {
    "pow": lambda x: torch.pow(x, 2),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "xlogy": lambda x: torch.xlogy(x, 2.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "float_power": lambda x: torch.float_power(x, 2),
    "moved": lambda x: x.cpu() + 1,
}


@pytest.mark.parametrize("name", SCALARS)
def test_functions_that_take_numbers_where_others_take_tensors(name: str) -> None:
    """C code that took a proxy for a tensor would end the process, which no test could report."""
    graph = trace(nn.Sequential(Function(SCALARS[name])), torch.randn(2, 3)).graph
    assert len(graph.nodes) > 2


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        assert isinstance(x, Tensor)
        assert isinstance(x, (int, Tensor))
        assert not isinstance(x, nn.Parameter | int)
        return self.function(x)


def test_isinstance_is_as_it_was_after_a_trace() -> None:
    before = builtins.isinstance
    trace(Function(torch.relu), torch.randn(2, 3))
    with pytest.raises(CaptureError):
        trace(Function(lambda x: x.no_such_method()), torch.randn(2, 3))
    assert builtins.isinstance is before
