"""What a forward keeps is captured, and afterwards the model is to the bit what it was, also after a failure."""

from __future__ import annotations

import builtins
import copy
import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from capture_cases import OTHERS, Between, captured, everything, image, same_as_before
from torch import Tensor, nn

from bnas.passes import CaptureError, CopyError, InputError, trace
from bnas.passes.frontend.copies import copying, deep_copy
from bnas.passes.frontend.state import ModelState
from bnas.runtime import SuperNetwork
from bnas.testing import assert_extracted_is_oracle


@functools.cache
def cached_grid(height: int, width: int) -> Tensor:
    return torch.linspace(-1, 1, height)[:, None] * torch.linspace(0, 2, width)


@pytest.fixture(autouse=True)
def _no_grid_of_another_test() -> None:
    cached_grid.cache_clear()


def grid(x: Tensor) -> Tensor:
    return torch.arange(x.shape[2])[:, None] * torch.arange(x.shape[3]) * 0.25


class Keeps(Between):
    """With containers for `step` to keep things in, in all kinds of places."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(step)
        self.by_size: dict[Any, Tensor] = {}
        self.ordered: OrderedDict[Any, Tensor] = OrderedDict()
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.seen: list[Any] = ["before"]
        self.recent: deque[Any] = deque([torch.ones(2)], maxlen=2)
        self.sizes: set[Any] = {(1, 1)}
        self.deep = {"inner": [{"tables": {}}], "pair": ([], {})}
        self.space = SimpleNamespace(table=None, more=[])
        self.table: Any = None
        self.register_buffer("mask", None)
        self.register_buffer("history", torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))
        self.eval()


def in_a_dict_by_size(net: Keeps, x: Tensor) -> Tensor:
    size = tuple(x.shape[2:])
    if size not in net.by_size:
        net.by_size[size] = grid(x)
    return x + net.by_size[size]


def in_a_dict_by_device(net: Keeps, x: Tensor) -> Tensor:
    if str(x.device) not in net.ordered:
        net.ordered[str(x.device)] = torch.arange(8.0, device=x.device).view(8, 1, 1)
    return x * net.ordered[str(x.device)]


def in_a_list(net: Keeps, x: Tensor) -> Tensor:
    net.seen.append(x)
    net.seen.insert(0, x.mean())
    return x + net.seen[-1]


def in_a_deque_and_a_set(net: Keeps, x: Tensor) -> Tensor:
    net.recent.append(x * 2)
    net.sizes.add(tuple(x.shape))
    return x + net.recent[-1]


def deep_inside(net: Keeps, x: Tensor) -> Tensor:
    net.deep["inner"][0]["tables"]["x"] = x
    net.deep["pair"][0].append(x)
    net.deep["pair"][1]["y"] = [x]
    return x + net.deep["inner"][0]["tables"]["x"]


def in_an_object(net: Keeps, x: Tensor) -> Tensor:
    net.space.table = grid(x)
    net.space.more.append(x)
    net.space.other = x.max()
    return x + net.space.table


def in_an_attribute(net: Keeps, x: Tensor) -> Tensor:
    if net.table is None or net.table.shape != x.shape[2:]:
        net.table = grid(x)
    return x + net.table


def as_an_attribute_that_was_not_there(net: Keeps, x: Tensor) -> Tensor:
    net.attn = x.softmax(1)
    net.inner.last_input = x
    return x * net.attn


def in_a_buffer_made_at_first_use(net: Keeps, x: Tensor) -> Tensor:
    if net.mask is None:
        net.mask = torch.linspace(0, 1, 8).view(8, 1, 1)
    return x * net.mask


def in_a_buffer_registered_at_first_use(net: Keeps, x: Tensor) -> Tensor:
    if not hasattr(net, "late"):
        net.register_buffer("late", torch.linspace(0, 1, 8).view(8, 1, 1), persistent=False)
    return x * net.late


def in_a_cached_function(net: Keeps, x: Tensor) -> Tensor:
    return x + cached_grid(x.shape[2], x.shape[3])


def a_count(net: Keeps, x: Tensor) -> Tensor:
    net.counts["calls"] += 1
    net.calls = getattr(net, "calls", 0) + 1
    return x + 1


def a_removed_entry(net: Keeps, x: Tensor) -> Tensor:
    net.seen.clear()
    net.recent.pop()
    del net.deep["pair"]
    return x


def its_mode(net: Keeps, x: Tensor) -> Tensor:
    net.inner.eval()
    return net.inner(x)


STEPS = [
    in_a_dict_by_size,
    in_a_dict_by_device,
    in_a_list,
    in_a_deque_and_a_set,
    deep_inside,
    in_an_object,
    in_an_attribute,
    as_an_attribute_that_was_not_there,
    in_a_buffer_made_at_first_use,
    in_a_buffer_registered_at_first_use,
    in_a_cached_function,
    a_count,
    its_mode,
]


@pytest.mark.parametrize("step", STEPS)
def test_what_forward_keeps_is_captured_and_gone_afterwards(step: Any) -> None:
    captured(Keeps(step), image(), OTHERS)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_nothing_is_left_of_a_capture_that_fails(step: Any, train: bool) -> None:
    def fails(net: Keeps, x: Tensor) -> Tensor:
        x = step(net, x)
        return x if x.sum() > 0 else -x

    net = Keeps(fails).train(train)
    before = everything(net)
    with pytest.raises(CaptureError, match="reads values of"):
        trace(net, image())
    same_as_before(net, before)


def test_what_is_removed_is_there_again() -> None:
    once, twice = Keeps(a_removed_entry), Keeps(lambda net, x: a_removed_entry(net, a_removed_entry(net, x)))
    before = everything(once), everything(twice)
    trace(once, image())
    with pytest.raises(CaptureError, match=r"pop from an empty|KeyError"):
        trace(twice, image())
    same_as_before(once, before[0])
    same_as_before(twice, before[1])


def test_a_table_that_a_call_before_left_makes_its_sizes_static() -> None:
    """At the example's sizes forward reads the table, and at others it makes one: sound, if not as free as could be."""
    net = Keeps(in_an_attribute)
    net(image())
    supernet = captured(net, image(), [image(5)])
    with pytest.raises(InputError, match=r"axis 2 has size 7, expected 4\. .*made in another way"):
        supernet.extract(supernet.space.maximal())(image(3, 7, 5))


@pytest.mark.parametrize("step", [in_a_list, deep_inside, as_an_attribute_that_was_not_there, in_an_object])
def test_a_model_that_has_kept_what_it_computed_with_gradients(step: Any) -> None:
    """Such tensors cannot be copied by Python's own deep copy, which the oracle needs."""
    net = Keeps(step)
    net(image())
    supernet = captured(net, image(), [image(5)])
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), image())


def test_a_change_of_the_model_is_seen() -> None:
    """The twin: every kind of thing that may be left behind is found by the comparison."""
    for change in STEPS:
        if change in (in_a_cached_function,):
            continue
        net = Keeps(change)
        net.train()
        before = everything(net)
        net(image())
        with pytest.raises(AssertionError):
            same_as_before(net, before)


def test_statistics_and_weights_written_by_forward_stay() -> None:
    def step(net: Keeps, x: Tensor) -> Tensor:
        net.steps += 1
        net.history[1:] = net.history[:-1].clone()
        net.history[0] = x.detach().mean()
        return x

    net = Keeps(step)
    before = everything(net)
    trace(net, image())
    same_as_before(net, before)


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_and_modes_stay_and_what_hooks_collect_is_given_back(fails: bool) -> None:
    features: list[Tensor] = []
    net = Between(lambda net, x: x if fails and net.inner(x).sum() > 0 else net.inner(x)).train()
    net.first.eval()
    net.inner.register_forward_hook(lambda module, args, output: features.append(output))
    net.first.register_forward_pre_hook(lambda module, args: None)
    before = everything(net)
    if fails:
        with pytest.raises(CaptureError):
            trace(net, image())
    else:
        trace(net, image())
    same_as_before(net, before)
    assert not features


class Collector:
    """As libraries for features have one: a method as the hook."""

    def __init__(self) -> None:
        self.last: dict[str, Tensor] = {}

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.last["inner"] = output


def test_what_a_method_as_a_hook_collects_is_given_back() -> None:
    collector, net = Collector(), Between(lambda net, x: net.inner(x)).eval()
    net.inner.register_forward_hook(collector.hook)
    kept = net(image())
    before = collector.last["inner"]
    trace(net, image())
    assert collector.last["inner"] is before
    assert not kept.is_meta


def test_a_table_with_keys_of_another_type_is_given_back() -> None:
    net = Between(lambda net, x: x)
    net.cache = {1: torch.ones(1)}  # type: ignore[assignment]
    state, kept = ModelState(net), dict(net.cache)  # type: ignore[call-overload]
    net.cache.clear()  # type: ignore[operator]
    net.cache["k"] = 5  # type: ignore[index]
    state.restore()
    assert net.cache == kept


def test_the_global_state_of_torch_stays() -> None:
    flags = (
        torch.backends.mha.get_fastpath_enabled,
        torch.get_default_dtype,
        torch.is_grad_enabled,
        torch.compiler.is_compiling,
        torch.compiler.is_exporting,
        lambda: torch.distributions.Distribution._validate_args,
        lambda: nn.Module.__call__,
        lambda: builtins.isinstance,
        lambda: vars(torch.autograd.Function.__mro__[1]).get("apply"),
    )
    before = [flag() for flag in flags]
    trace(Between(lambda net, x: net.inner(x)).eval(), image())
    with pytest.raises(CaptureError):
        trace(Between(lambda net, x: x.no_such_method()).eval(), image())
    assert [flag() for flag in flags] == before


def test_export_and_compile_work_after_a_capture() -> None:
    """The tracer of before left `isinstance` changed for those that follow it."""
    net = Between(lambda net, x: net.inner(x).relu()).eval()
    trace(net, image())
    exported = torch.export.export(net, (image(),)).module()
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(exported(image()), net(image()))
        torch.testing.assert_close(compiled(image()), net(image()))


class Keyed(nn.Module):
    """Keeps the keys of a dict, which Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Sequential(nn.Conv2d(3, 8, 1)), nn.Conv2d(8, 2, 1)
        self.inner.names = {"a": 1}.keys()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


def test_what_cannot_be_copied_is_named() -> None:
    net = Keyed()
    supernet = SuperNetwork.from_model(net, image())
    told = r"cannot be copied: inner\.names of Sequential is a dict_keys \(cannot pickle .*such as a list"
    for copied in (lambda: deep_copy(net), lambda: copy.deepcopy(supernet)):
        with pytest.raises(CopyError, match=told):
            copied()
    net.inner.names = ["a"]  # type: ignore[assignment]
    assert deep_copy(net) is not net
    assert isinstance(copy.deepcopy(supernet), SuperNetwork)


def test_another_error_of_a_copy_stays_what_it_is() -> None:
    net = Keyed()
    net.inner.names = ["a"]  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"^of another cause$"), copying(net):
        raise TypeError("of another cause")
