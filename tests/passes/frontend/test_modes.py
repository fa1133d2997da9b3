"""Training mode is the model's: norms and dropouts in all spellings, custom backwards, parts without gradients."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_cases import OTHERS, Between, captured, image, trains_alike
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnas.passes import trace
from bnas.passes.frontend.decompositions import Follows
from bnas.runtime import SuperNetwork


class Scaled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Activated(nn.BatchNorm2d):
    """With its own call of the function, as norms of image libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.relu(
            F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or not self.track_running_stats,
                self.momentum,
                self.eps,
            )
        )


class Frozen(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class FrozenAround(nn.Module):
    """Keeps the norm inside it in evaluation mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.norm.eval()

    def train(self, mode: bool = True) -> FrozenAround:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ByHand(nn.Module):
    """A batch norm of tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, training=self.training, momentum=0.3)


class ByFunctionalCall(nn.Module):
    """Runs its norm with other parameters in the place of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.norm, {"weight": self.norm.weight * 1.5}, (x,))


class Instances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, self.mean, self.var, use_input_stats=self.training)


class Attention(nn.Module):
    """Drops weights of attention in training."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.qkv, self.product = nn.Linear(8, 24), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, -1)
        if self.product:
            out = F.dropout((q @ k.mT / 3).softmax(-1), 0.3, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0)
        return out.mT.reshape(x.shape)


def hooked(norm: nn.Module, *, before: bool = False) -> nn.Module:
    """With a hook that changes what the layer gets, or gives."""
    if before:
        norm.register_forward_pre_hook(lambda module, args: (args[0] * 0.9,))
    else:
        norm.register_forward_hook(lambda module, args, out: out * 1.1 + 0.1)
    return norm


def with_another_forward(norm: nn.Module) -> nn.Module:
    """With a forward that wraps that of its class, as libraries that move layers between devices set one."""
    before = norm.forward
    norm.forward = lambda x: before(x * 0.9) + 0.1
    return norm


NORMS: dict[str, Any] = {
    "plain": lambda: nn.BatchNorm2d(8),
    "hooked": lambda: hooked(nn.BatchNorm2d(8)),
    "hooked-before": lambda: hooked(nn.BatchNorm2d(8), before=True),
    "hooked-subclass": lambda: hooked(Scaled(8)),
    "with-another-forward": lambda: with_another_forward(nn.BatchNorm2d(8)),
    "subclass": lambda: Scaled(8),
    "activated": lambda: Activated(8),
    "activated-without-statistics": lambda: Activated(8, track_running_stats=False),
    "synchronised": lambda: nn.SyncBatchNorm(8),
    "cumulative": lambda: nn.BatchNorm2d(8, momentum=None),
    "by-hand": ByHand,
    "by-functional-call": ByFunctionalCall,
    "instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "instance-by-hand": Instances,
    "frozen-by-train": lambda: Frozen(8),
    "frozen-inside": FrozenAround,
    "without-statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
}


def between(part: nn.Module) -> Between:
    return Between(lambda net, x: net.part(x), part=part)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("train", [False, True], ids=["captured-in-evaluation", "captured-in-training"])
def test_norms_train_as_in_the_model(name: str, train: bool) -> None:
    if name == "synchronised" and not torch.cuda.is_available():
        pytest.skip("SyncBatchNorm refuses to train on a CPU")
    net = between(NORMS[name]()).train(train)
    supernet = trains_alike(net, image(4))
    assert not supernet.skeleton.types.ir.training
    captured(net.eval(), image(), OTHERS)


def test_a_synchronised_norm_is_captured_in_evaluation_mode() -> None:
    captured(between(nn.SyncBatchNorm(8)).eval(), image(), OTHERS)


def test_a_subclass_of_a_batch_norm_is_that_layer_in_plain_form() -> None:
    ir = trace(between(Activated(8)).eval(), image())
    assert ir.plain == {"part": nn.BatchNorm2d}
    assert [node.op for node in ir.graph.nodes if node.target == "part"] == ["call_module"]
    ir = trace(between(NORMS["frozen-by-train"]()).eval(), image())
    assert not ir.training


def test_a_batch_norm_called_without_training_stays_a_function() -> None:
    def step(net: Between, x: Tensor) -> Tensor:
        n = net.part
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training=False)

    net = Between(step, part=nn.BatchNorm2d(8)).eval()
    net.part.running_mean.normal_()
    ir = trace(net, image())
    assert F.batch_norm in [node.target for node in ir.graph.nodes]
    assert not ir.plain
    trains_alike(net, image(4))


@pytest.mark.parametrize("product", [True, False])
def test_dropout_in_attention_follows_the_mode(product: bool) -> None:
    net = between(Attention(product)).eval()
    ir = trace(net, image())
    assert [type(module) for module in ir.modules.values()] == [Follows]
    trains_alike(net, image())
    captured(net, image(), OTHERS)


DROPS: dict[str, Any] = {
    "function": lambda net, x: F.dropout(x, 0.5, net.training),
    "keyword": lambda net, x: F.dropout(x, p=0.4, training=net.training),
    "channels": lambda net, x: F.dropout2d(x, 0.5, net.training),
    "rate-by-mode": lambda net, x: F.dropout(x, 0.5 if net.training else 0.0, True),
    "scale-by-mode": lambda net, x: x * (1.5 if net.training else 1.0),
    "alpha": lambda net, x: F.alpha_dropout(x, 0.2, net.training),
}


@pytest.mark.parametrize("name", DROPS)
def test_what_follows_the_mode_does_so_in_programs_and_extracted_modules(name: str) -> None:
    net = Between(DROPS[name]).eval()
    supernet = trains_alike(net, image())
    assert not supernet.skeleton.types.ir.training
    captured(net, image(), OTHERS)
    part = supernet.extract(supernet.space.maximal())
    torch.manual_seed(0)
    trained = part.train()(image())
    torch.manual_seed(0)
    torch.testing.assert_close(trained, net.train()(image()), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(trained, net.eval()(image()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda net, x: net.inner(x) if net.training else x, id="layer-in-training-only"),
        pytest.param(lambda net, x: x if net.training else net.inner(x), id="layer-in-evaluation-only"),
        pytest.param(
            lambda net, x: x + x.mean((2, 3), keepdim=True) if net.training else x.relu(), id="other-functions"
        ),
    ],
)
def test_another_graph_in_training_is_that_of_programs_in_training_mode(step: Any) -> None:
    net = Between(step).eval()
    supernet = captured(net, image(), OTHERS)
    assert supernet.ir.trained is not None
    assert not [one for one in supernet.diagnostics if one.place == "the model"]
    trains_alike(net, image())


class Helped(nn.Module):
    """Has a head that only trains, and that takes images of one size."""

    def __init__(self, sizes: int) -> None:
        super().__init__()
        self.body, self.head, self.helper = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Linear(sizes, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        found = {"out": self.head(y.relu())}
        return {**found, "help": self.helper(y.flatten(1))} if self.training else found


def test_a_wrapper_with_a_forward_of_its_own_is_captured_with_it() -> None:
    wrapper = with_another_forward(nn.DataParallel(between(nn.BatchNorm2d(8)))).eval()
    trains_alike(wrapper, image())
    supernet, x = SuperNetwork.from_model(wrapper.eval(), image()), image()
    torch.testing.assert_close(supernet.extract(supernet.space.maximal())(x), wrapper(x), rtol=0, atol=0)


def test_an_axis_that_only_evaluation_can_change_is_static_so_that_training_is_the_models() -> None:
    net = Helped(8 * image()[0, 0].numel()).eval()
    supernet = trains_alike(net, image())
    assert not supernet.ir.training
    assert supernet.dynamic == {"x": {0: "batch"}}
    (why, *_) = [one.reason for one in supernet.diagnostics if one.place == "x[2]"]
    assert "in training mode, with another size, forward fails in" in why
    asked = SuperNetwork.from_model(net, image(), dynamic={"x": {2: "height"}})
    assert asked.dynamic == {"x": {0: "batch", 2: "height"}}, "what the user asks for stays"
    assert "training mode uses the graph of evaluation mode" in str(asked.diagnostics)


def test_a_graph_of_training_mode_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SuperNetwork, "_training_skeleton", lambda self, analysis: None)
    with pytest.raises(AssertionError):
        trains_alike(Between(lambda net, x: net.inner(x) if net.training else x).eval(), image())


# gradients


class DropsLayers(nn.Module):
    """Drops whole layers in training mode by a number that Python reads, as speech models do."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.narrow = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(1).item() <= 0.0:
            return x
        heads = (one(x).view(len(x), -1, 4, 4).transpose(1, 2) for one in (self.query, self.value))
        query, value = heads
        mixed = F.scaled_dot_product_attention(query, query, value).transpose(1, 2)
        return x + self.narrow(mixed.reshape(len(x), -1, 16))


def test_a_module_that_is_opaque_in_training_only_keeps_its_widths() -> None:
    net = nn.Sequential(nn.Linear(4, 8), DropsLayers(), nn.Linear(8, 16), nn.Linear(16, 3)).eval()
    supernet, x = SuperNetwork.from_model(net, torch.randn(2, 5, 4)), torch.randn(3, 6, 4)
    assert supernet.ir.trained is not None
    assert set(supernet.space.widths) == {"2"}
    assert any("opaque in training mode" in one.reason for one in supernet.diagnostics)
    supernet.train()
    assert supernet.program(supernet.space.minimal()).train()(x).shape == (3, 6, 3)
    net[1].forward = types.MethodType(lambda self, x: x + self.narrow(self.query(x) * self.value(x)), net[1])
    assert "1.query" in SuperNetwork.from_model(net, x).space.widths  # where both modes are recorded


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        ctx.rate = rate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -ctx.rate * grad, None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def without_gradients(net: Between, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = net.inner(x).softmax(1)
    return x * target


class Steeper(Reversed):
    """Has the forward of another one, and a backward of its own."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return 3 * gradients[0], None


class Parts(torch.autograd.Function):
    """Two outputs of two inputs, with a context that is set up apart from the forward."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x.sign() * weight, x.floor()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients[0] + gradients[1], (gradients[0] * x).sum((0, 2, 3)).reshape(weight.shape)


class Shaken(torch.autograd.Function):
    """Mixes two tensors by numbers that it draws in training mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, training: bool) -> Tensor:
        share = torch.rand(len(x), 1, 1, 1) if training else 0.5
        return share * x + (1 - share) * other

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 0.3 * grad, 0.7 * grad, None


reversal, rounded, steeper, parts = Reversed.apply, Rounded.apply, Steeper.apply, Parts.apply


def partly(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        known = reversal(x, 0.5)
    return net.inner(known + reversal(x, 0.5))


STEPS: dict[str, Any] = {
    "gradient-reversal": lambda net, x: net.inner(Reversed.apply(x, 0.5)),
    "gradient-reversal-by-a-name": lambda net, x: net.inner(reversal(x, 0.5)),
    "derived-by-a-name": lambda net, x: net.inner(steeper(x, 0.5)),
    "straight-through-by-a-name": lambda net, x: rounded(net.inner(x) * 3),
    "two-outputs-by-a-name": lambda net, x: net.inner(sum(parts(x, net.inner.weight[0]))),
    "without-gradients-by-a-name": partly,
    "straight-through": lambda net, x: Rounded.apply(net.inner(x) * 3),
    "straight-through-by-detach": lambda net, x: x + (x.round() - x).detach(),
    "noise-in-a-function": lambda net, x: Shaken.apply(x, net.inner(x), net.training),
    "checkpoint": lambda net, x: checkpoint(net.inner, x, use_reentrant=False),
    "reentrant-checkpoint": lambda net, x: checkpoint(net.inner, x, use_reentrant=True),
    "checkpoint-of-a-function": lambda net, x: checkpoint(lambda y: net.inner(y).relu(), x, use_reentrant=False),
    "no-grad": without_gradients,
    "detach": lambda net, x: x * net.inner(x).detach(),
    "data": lambda net, x: x * net.inner(x).data,
    "frozen": lambda net, x: F.conv2d(x, net.inner.weight.detach()),
}


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda: torch.distributions.Beta(0.5, 0.5).sample(), id="beta"),
        pytest.param(lambda: torch.distributions.Gamma(2.0, 1.0).sample(), id="gamma"),
        pytest.param(lambda: torch.binomial(torch.tensor(5.0), torch.tensor(0.5)), id="binomial"),
    ],
)
def test_what_distributions_draw_in_training_is_drawn_again_in_every_call(draw: Any) -> None:
    net = Between(lambda net, x: x * draw() if net.training else x).eval()
    supernet = trains_alike(net, image())
    assert not supernet.ir.training
    program = supernet.train().program(supernet.space.maximal())
    assert len({float(program(image()).detach().sum()) for _ in range(8)}) > 1


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_the_model(name: str) -> None:
    net = Between(STEPS[name]).eval()
    captured(net, image(), OTHERS)
    trains_alike(net, image())


@pytest.mark.parametrize("name", ["no-grad", "detach", "data", "frozen"])
def test_parts_without_gradients_get_none(name: str) -> None:
    net = Between(STEPS[name]).eval()
    supernet = SuperNetwork.from_model(net, image())
    supernet.train().program(supernet.space.maximal())(image()).sum().backward()
    assert net.inner.weight.grad is None or not net.inner.weight.grad.any()
    assert net.first.weight.grad is not None


def test_a_backward_that_is_lost_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Between(STEPS["gradient-reversal"]).eval()
    monkeypatch.setattr("bnas.passes.ops.calls.CustomFunction.forward", lambda self, x, rate: x.view_as(x))
    with pytest.raises(AssertionError, match="not equal"):
        trains_alike(net, image())
