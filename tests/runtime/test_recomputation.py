"""Programs in segments: bitwise the same gradients, statistics and dropout, with less kept for the way back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_cases import batches, gradients, plain, same, supernet, tensors

from bnas.runtime import Stage, SuperNetwork, Trainer
from bnas.runtime.program import Gathered
from bnas.runtime.recomputation import Buffers, in_segments
from bnas.runtime.segments import Plan, least_memory, plan_of

CHANNELS = 8


class Block(nn.Module):
    """A residual block with all that a second call must not do again: statistics, dropout, writing in place."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(CHANNELS), nn.Dropout(0.3)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = F.relu_(y) if self.kind == "in place" else y.relu()
        y = self.last(self.drop(y))
        if self.kind == "in place":
            y += x
            return y.relu_()
        return torch.cat([x, y.chunk(2, 1)[0]], 1)[:, :CHANNELS] + y if self.kind == "parts" else x + y


class Counting(nn.BatchNorm2d):
    """With its own call of the function, and a counter that its forward writes into."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


class Normal(nn.Module):
    """Blocks with weights that are computed anew at each call, from vectors that each call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.spectral_norm(nn.Linear(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x.transpose(1, 3)).transpose(1, 3)


class Deep(nn.Module):
    def __init__(self, make: Callable[[], nn.Module] = Block, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.blocks, self.head = nn.ModuleList(make() for _ in range(depth)), nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.mean((2, 3))), "features": [x]}


class Joined(nn.Module):
    """A norm over two parts side by side: a sub-network keeps the beginning of each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(2 * CHANNELS), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(torch.cat([self.left(x), self.right(x)], 1)))


def counting() -> nn.Module:
    block = Block()
    block.norm = Counting(CHANNELS)
    return block


class Recomputing(nn.Module):
    """Its own blocks are under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


CASES: dict[str, Callable[[], nn.Module]] = {
    "plain": Block,
    "in-place": lambda: Block("in place"),
    "parts": lambda: Block("parts"),
    "joined": Joined,
    "own-norm": counting,
    "own-checkpoint": Recomputing,
    "spectral-norm": Normal,
}


def made(make: Callable[[], nn.Module] = Block, **options: Any) -> SuperNetwork:
    torch.manual_seed(0)
    elasticity = {"min_width": 2, "divisor": 2}
    return SuperNetwork.from_model(Deep(make, **options).eval(), torch.zeros(2, 1, 8, 8), elasticity).train()


def stepped(net: SuperNetwork, subnet: Any, wrapped: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Outputs, gradients and buffers of a step, and what is drawn after it."""
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    outputs = wrapped(net.program(subnet))(torch.randn(4, 1, 8, 8))
    (outputs["logits"].square().sum() + outputs["features"][0].sum()).backward()
    found = (outputs["logits"].detach(), gradients(net), dict(tensors(net)), torch.rand(3))
    net.load_state_dict(state)
    assert type(outputs) is dict
    assert type(outputs["features"]) is list
    return found


def alike(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether two steps are the same to the bit."""
    tensors_too = all(same(one, other) for one, other in zip(first[1:3], second[1:3], strict=True))
    return tensors_too and torch.equal(first[0], second[0]) and torch.equal(first[3], second[3])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_same_to_the_bit(case: str) -> None:
    net = made(CASES[case])
    space = net.space
    for subnet in (space.maximal(), space.minimal(), *(space.sample(number) for number in range(3))):
        assert alike(stepped(net, subnet, in_segments), stepped(net, subnet, lambda program: program))
    ready = net.program(space.maximal()).ready()
    assert len(plan_of(ready.graph, ready.ir).segments) > 2


@pytest.mark.parametrize("case", ["plain", "joined"])
def test_a_second_update_is_noticed(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Statistics that are updated in the second call too are others, also those that a layer takes at each call."""
    net = made(CASES[case])
    subnet = net.space.restrict(depth=False).minimal()
    layers = [one for one in net.program(subnet).modules() if isinstance(one, Gathered) and one.buffers_now()]
    assert bool(layers) is (case == "joined")
    right = stepped(net, subnet, lambda program: program)
    monkeypatch.setattr(Buffers, "given", lambda self: nullcontext())
    wrong = stepped(net, subnet, in_segments)
    assert same(right[1], wrong[1])
    assert not same(right[2], wrong[2])


def kept(net: SuperNetwork, wrapped: Callable[[Any], Any]) -> int:
    """Bytes that a forward pass keeps for the way back, parameters left out."""
    own, found = {one.data_ptr() for one in net.parameters()}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = wrapped(net.program(net.space.maximal()))(torch.randn(4, 1, 8, 8))
    del outputs
    return sum(found.values())


def test_less_is_kept() -> None:
    net = made(depth=24)
    assert kept(net, in_segments) < 0.35 * kept(net, lambda program: program)


def test_training_is_the_same_to_the_bit() -> None:
    nets = [supernet(dropout=0.4) for _ in range(2)]
    for net, asked in zip(nets, (False, True), strict=True):
        torch.manual_seed(3)
        recipe = plain(rule="sandwich", subnets_per_step=3, checkpoint_activations=asked)
        Trainer(net, [Stage(epochs=2)], recipe).fit(batches())
    assert same(tensors(nets[0]), tensors(nets[1]))


def test_cuts_with_the_least_memory() -> None:
    equal = [4] * 9
    assert least_memory(equal, dict.fromkeys(range(1, 9), 4)) == [3, 6]
    assert least_memory(equal, dict.fromkeys(range(1, 9), 100)) == []
    assert least_memory(equal, {2: 9, 3: 1, 4: 9, 6: 9, 7: 1, 8: 9}) == [3, 7]


def test_what_is_written_into_later_does_not_pass_a_cut() -> None:
    net = made(CASES["in-place"])
    ready = net.program(net.space.maximal()).ready()
    plan = plan_of(ready.graph, ready.ir)
    assert isinstance(plan, Plan)
    inner = [node for segment in plan.segments for node in segment.takes]
    assert len(plan.segments) > 2
    assert not any(str(node.target).endswith(("norm", "last")) for node in inner)


class Hidden(nn.Module):
    """Writes into its input where no graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_write_that_is_not_seen_is_no_wrong_gradient() -> None:
    net = made(Hidden)
    program = net.program(net.space.maximal())

    def write(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        given[0].detach().add_(1)

    for number in range(1, 6):
        program.get_submodule(f"blocks.{number}.conv").register_forward_pre_hook(write)
    loss = in_segments(program)(torch.randn(4, 1, 8, 8))["logits"].sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
