"""Other sizes than the example's: those that a graph is right for are taken, and all others are refused by name."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, image
from torch import Tensor, nn

from bnas.passes import CaptureError, InputError, trace
from bnas.runtime import SuperNetwork
from bnas.testing import assert_onnx_is_extracted


class Texts(nn.Module):
    """Tokens with a table of positions and an attention mask by length; `memory` has a length of its own."""

    def __init__(self, table: int = 32) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(20, 8), nn.Embedding(table, 8)
        self.query, self.key, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        length = ids.shape[1]
        x = self.embed(ids) + self.positions(torch.arange(length))
        other = x if memory is None else memory
        scores = self.query(x) @ self.key(other).mT / 8**0.5
        if memory is None:
            scores = scores.masked_fill(torch.ones(length, length).tril() == 0, float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e9)
        return self.last(scores.softmax(-1) @ other)


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 20, (batch, length), generator=torch.Generator().manual_seed(length))


def mask(batch: int, length: int) -> Tensor:
    return (torch.arange(length) < length - 1).long().expand(batch, -1).clone()


def test_texts_of_any_length() -> None:
    supernet = captured(Texts().eval(), ids(2, 7), [ids(1, 7), ids(3, 12), ids(2, 1), ids(2, 32)])
    assert supernet.skeleton.types.ir.dynamic == {"ids": {0: "batch", 1: "length"}}


class Sliced(nn.Module):
    """A table that ends at the length, and zeros of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.randn(32, 8))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.table[: ids.shape[1]]
        return self.last(x) + torch.zeros(ids.shape[1], 3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_saved_part_takes_any_length(again: Any) -> None:
    """PyTorch loads a graph module by a symbolic trace, whose proxies no slice and no `torch.zeros` takes as a size."""
    supernet = captured(Sliced().eval(), ids(2, 7))
    module = supernet.extract(supernet.space.minimal())
    loaded = again(module)
    assert str(loaded.graph) == str(module.graph)
    for length in (1, 7, 32):
        torch.testing.assert_close(loaded(ids(3, length)), module(ids(3, length)), rtol=0, atol=0)


def test_two_inputs_of_one_length() -> None:
    one, other = ({"ids": ids(b, n), "mask": mask(b, n)} for b, n in ((2, 7), (3, 11)))
    supernet = captured(Texts().eval(), one, [other])
    assert supernet.skeleton.types.ir.dynamic == {axis: {0: "batch", 1: "length"} for axis in ("ids", "mask")}


def test_two_lengths_at_once() -> None:
    def inputs(batch: int, length: int, other: int) -> dict[str, Tensor]:
        memory = torch.randn(batch, other, 8, generator=torch.Generator().manual_seed(other))
        return {"ids": ids(batch, length), "memory": memory, "mask": mask(batch, other)}

    captured(Texts().eval(), inputs(2, 7, 5), [inputs(3, 4, 9), inputs(1, 9, 9), inputs(2, 5, 7)])


def test_a_length_beyond_a_table_fails_in_the_model_and_the_program() -> None:
    net = Texts(8).eval()
    supernet = captured(net, ids(2, 7), [ids(2, 8)])
    for module in (net, supernet.program(supernet.space.maximal())):
        with pytest.raises(IndexError):
            module(ids(2, 9))


STEPS: dict[str, Any] = {
    "flatten": lambda net, x: x.flatten(2).mT.reshape(-1, 8).view(x.shape[0], -1, 8).mT.view(x.shape),
    "pool-to-half": lambda net, x: F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=x.shape[2:]),
    "strided": lambda net, x: F.interpolate(F.max_pool2d(x, 3, 2, 1), size=(x.shape[2], x.shape[3])),
    "strided-view": lambda net, x: x[:, :, ::2].flatten(2).view(x.shape[0], 8, (x.shape[2] + 1) // 2, x.shape[3]),
    "floor-division": lambda net, x: x[:, :, : x.shape[2] // 2] * (x.shape[3] // 2),
    "share": lambda net, x: x / (x.shape[2] * x.shape[3]),
    "root": lambda net, x: x * (x.shape[2] / x.shape[3]),
    "grid": lambda net, x: x + torch.linspace(-1, 1, x.shape[3]) + torch.arange(x.shape[2])[:, None],
    "centre": lambda net, x: x - x[:, :, x.shape[2] // 2 :][:, :, :1],
    "pad-to-multiple": lambda net, x: F.pad(x, (0, -x.shape[3] % 4, 0, 0)),
    "eye": lambda net, x: torch.eye(x.shape[2]) @ x,
    "upsample": lambda net, x: F.interpolate(x, scale_factor=2),
    "roll": lambda net, x: torch.roll(x, (x.shape[2] // 2, -1), (2, 3)),
    "norm-of-positions": lambda net, x: F.layer_norm(x, x.shape[1:]),
    "mean-by-hand": lambda net, x: x.sum((2, 3), keepdim=True) / (x.size(2) * x.size(3)),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_sizes_are_used_for(name: str) -> None:
    """At every size the graph is the model, or the size is refused."""
    net = Between(STEPS[name]).eval()
    supernet = captured(net, image(), [image(3)])
    part = supernet.extract(supernet.space.maximal())
    refused = 0
    for height, width in ((8, 12), (5, 6), (4, 7), (7, 3), (9, 11)):
        other = image(2, height, width)
        try:
            found = part(other)
        except InputError:
            refused += 1
            continue
        torch.testing.assert_close(found, net(other), rtol=0, atol=0)
    assert refused == 0 or name == "pad-to-multiple"


POOLS: dict[str, Any] = {
    "sizes": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "list": lambda x: F.max_pool2d(x, kernel_size=[x.size(2), x.size(3)]),
    "one-number": lambda x: F.avg_pool2d(x, x.size(3)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_window_that_is_the_whole_input(name: str) -> None:
    """One number for both axes is right for squares: then both must be one axis, which a user can say."""
    net, square = Between(lambda net, x: POOLS[name](x)).eval(), image(2, 6, 6)
    free = captured(net, square, [image(3, 6, 6)])
    assert ("width" in free.skeleton.types.ir.sizes.names) == (name != "one-number")
    supernet = captured(net, square, [image(3, 9, 9)], dynamic={"x": {2: "side", 3: "side"}})
    assert_onnx_is_extracted(supernet, supernet.space.minimal(), square)
    assert_onnx_is_extracted(free, free.space.maximal(), square)


class Unet(nn.Module):
    """Two levels down and up again: sizes must be multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
        self.up, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        b = self.up(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.last(torch.cat([F.interpolate(b, scale_factor=2), a], 1))


def test_a_unet_takes_multiples() -> None:
    supernet = captured(Unet().eval(), image(2, 16, 16), [image(1, 8, 24), image(2, 4, 4)])
    for module in (supernet.program(supernet.space.maximal()), supernet.extract(supernet.space.minimal())):
        with pytest.raises(InputError, match=r"input 'x': axis 2 has size 18, expected 16 plus a multiple of 4"):
            module(image(2, 18, 16))


class Patches(nn.Module):
    """Takes images that whole patches fill, as vision transformers with patches of 14 pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.patch, self.last = side, nn.Conv2d(3, 8, side, side), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.side or x.shape[3] % self.side:
            raise ValueError(f"the image must consist of patches of {self.side}")
        return self.last(self.patch(x).flatten(2).mT.relu())


@pytest.mark.parametrize(("side", "size"), [(3, 3), (6, 12), (7, 42), (9, 36), (14, 28)])
def test_patches_whose_side_is_no_power_of_two(side: int, size: int) -> None:
    others = [image(3, side, 3 * side), image(1, 5 * side, 2 * side)]
    supernet = captured(Patches(side).eval(), image(2, size, size), others)
    assert supernet.skeleton.types.ir.sizes.steps == {"height": side, "width": side}
    with pytest.raises(InputError, match=f"axis 2 has size {size + 2}, expected {size} plus a multiple of {side}"):
        supernet.program(supernet.space.maximal())(image(2, size + 2, size))


class Cropped(nn.Module):
    """Halves an image twice, rounding up, and crops what it doubles to the sizes on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.lower = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.upper = (nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(x).relu()
        back = self.up(self.lower(half).relu())[:, :, : half.shape[2], : half.shape[3]]
        return self.upper(back + half)[..., : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize("size", [14, 15, 16, 17, 18, 30])
def test_sizes_that_are_halved_with_every_remainder(size: int) -> None:
    net = Cropped().eval()
    supernet = SuperNetwork.from_model(net, torch.randn(2, 3, size, size))
    part = supernet.extract(supernet.space.maximal())
    for height in range(size, size + 8):
        x = torch.randn(1, 3, height, 2 * size - height + 8)
        torch.testing.assert_close(part(x), net(x), rtol=0, atol=0)


class Checked(nn.Module):
    """Takes multiples of 16 only, and computes something else at each: the second reason is the one to tell."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last, self.step = nn.Conv2d(3, 2, 1), step

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[3] % 16:
            raise ValueError("the width must be a multiple of 16")
        for _ in range(x.shape[3] // self.step):
            x = x.relu()
        return self.last(x)


def test_the_reason_of_a_static_axis_is_what_differs_at_the_largest_step() -> None:
    static = trace(Checked(16).eval(), image(2, 4, 16)).sizes.static["x[3]"]
    assert "with another size or mode, the model calls" in static
    assert "multiple of 16" not in static
    assert "x[3]" not in trace(Checked(10**9).eval(), image(2, 4, 16)).sizes.static


def test_static_axes_are_refused_with_axis_size_and_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 24, 3)).eval()
    supernet = captured(net, image(), [image(5)])
    wanted = r"input 'input': axis 2 has size 8, expected 4\. .*RuntimeError"
    for module in (supernet.program(supernet.space.maximal()), supernet.extract(supernet.space.minimal())):
        with pytest.raises(InputError, match=wanted):
            module(image(2, 8, 6))
        with pytest.raises(InputError, match=r"'input' has 3 axes, expected 4: shape \(3, 4, 6\)"):
            module(image()[0])
    assert any(told.place == "input[2]" and "its size is fixed" in told.reason for told in supernet.diagnostics)


class Categories(nn.Module):
    """Each column has a table of its own, in one embedding, and a bias of its own."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(columns, 8))
        self.register_buffer("offsets", torch.arange(columns) * 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embed(x + self.offsets) + self.bias)


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_one_entry_that_is_broadcast_is_no_other_size(columns: int) -> None:
    """A single column fits the tables of all, so that the model takes it; but it takes no other number."""
    supernet = captured(Categories(columns).eval(), torch.randint(0, 4, (2, columns)))
    assert supernet.dynamic == {"x": {0: "batch"}}
    assert_onnx_is_extracted(supernet, supernet.space.minimal(), torch.randint(0, 4, (2, columns)))
    with pytest.raises(InputError, match=f"axis 1 has size 1, expected {columns}"):
        supernet.extract(supernet.space.minimal())(torch.zeros(2, 1, dtype=torch.int64))


def test_checks_are_in_programs_and_extracted_modules_only() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval()
    ir = trace(net, image())
    assert [check.name for check in ir.checks] == ["input"]
    assert ir.checks[0].allowed == (None, 3, None, None)
    assert not [node for node in ir.graph.nodes if "check_sizes" in node.name]
    supernet = SuperNetwork.from_model(net, image())
    maximal = supernet.space.maximal()
    for module in (supernet.program(maximal), supernet.extract(maximal)):
        assert [node.name for node in module.graph.nodes if "check_sizes" in node.name] == ["check_sizes"]


def test_a_table_that_no_graph_can_make_fixes_its_size() -> None:
    """`bincount` does not run on meta tensors."""
    net = Between(lambda net, x: x * torch.bincount(torch.arange(x.shape[3]) % 3)[0]).eval()
    supernet = captured(net, image(), (image(5),))
    assert supernet.dynamic["x"].keys() == {0, 2}
    assert "bincount" in supernet.ir.sizes.static["x[3]"]


def test_axes_that_a_user_names() -> None:
    net = Texts().eval()
    ir = trace(net, ids(2, 7), {"ids": {1: "tokens"}})
    assert ir.sizes.names == ("batch", "tokens")
    assert trace(net, ids(2, 7), {}).sizes.names == ("batch",)
    assert trace(Between(STEPS["flatten"]).eval(), image(), {"x": {2: "rows"}}).sizes.names == ("batch", "rows")
    assert trace(Between(STEPS["flatten"]).eval(), image(), {"x": {-1: "columns"}}).dynamic["x"][3] == "columns"


@pytest.mark.parametrize(
    ("dynamic", "reason"),
    [
        ({"tokens": {1: "length"}}, "dynamic: there is no input 'tokens'; there are ids, mask"),
        ({"ids": {2: "length"}}, "dynamic: input 'ids' has 2 axes, so it has no axis 2"),
        ({"ids": {0: "one", 1: "one"}}, r"dynamic: axes called 'one' have different sizes in the example: \[2, 7\]"),
        ({"ids": {1: "length"}}, "the axis 'length' cannot be dynamic: .*"),
    ],
)
def test_wrong_names_are_refused(dynamic: Any, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        trace(Texts().eval(), {"ids": ids(2, 7), "mask": mask(2, 7)}, dynamic)


def test_an_axis_that_must_be_dynamic_and_cannot_names_the_line() -> None:
    net = Between(lambda net, x: net.inner(x) if x.shape[2] > 5 else x).eval()
    with pytest.raises(CaptureError, match=r"'rows' cannot be dynamic: .*test_sizes\.py:\d+.*"):
        trace(net, image(), {"x": {2: "rows"}})


def test_a_wrong_size_is_seen() -> None:
    """The twin: a graph with the example's size in it is rejected."""
    net = Between(STEPS["share"]).eval()
    supernet = SuperNetwork.from_model(net, image())
    part = supernet.extract(supernet.space.maximal())
    (height,) = [node for node in part.graph.nodes if node.target == "size" and node.args[1] == 2]
    for user in list(height.users):
        user.args = tuple(4 if one is height else one for one in user.args)
    part.recompile()
    torch.testing.assert_close(part(image()), net(image()), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(part(image(2, 8, 6)), net(image(2, 8, 6)), rtol=0, atol=0)
