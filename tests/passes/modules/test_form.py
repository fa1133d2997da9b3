"""Sub-networks as the user's own classes: equal to the graph, with the user's names and methods, or refused."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from form_cases import FINE, assert_is_graph, copies, run
from hypothesis import given, settings
from network_cases import EXACT, Case, cases, supernet_of
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.parametrizations import spectral_norm

from bnas import SuperNetwork
from bnas.passes import Subnet
from bnas.passes.errors import ModuleFormError
from bnas.passes.modules.attention import NarrowAttention
from bnas.passes.modules.sizes import Candidates, numbers_of
from bnas.passes.modules.trial import combinations, difference
from bnas.runtime.errors import ProgramError
from bnas.testing import Head, Layer, Network, Tokens
from bnas.testing.tokens import Attention

# Random networks ----------------------------------------------------------------------------------------------------

REFUSED = ("no change of numbers in attributes", "is also called outside of it", "is not a module, but code of")


@given(case=cases(torch.float64))
@settings(max_examples=25)
def test_random_networks_are_their_graph_or_refused(case: Case) -> None:
    subnet = case.subnet
    try:
        made = assert_is_graph(case.supernet, subnet, case.inputs)
    except ModuleFormError as refusal:
        if not any(text in str(refusal) for text in REFUSED) or "Use supernet.extract(subnet)" not in str(refusal):
            raise
        return
    other = torch.cat([case.inputs, case.inputs[:1]])
    error, _ = difference(run(made, other), run(case.supernet.extract(subnet), other))
    assert error <= EXACT


@pytest.mark.slow
def test_few_of_many_random_networks_are_refused() -> None:
    refused = []

    @settings(max_examples=300, derandomize=True)
    @given(case=cases(torch.float64))
    def check(case: Case) -> None:
        try:
            assert_is_graph(case.supernet, case.subnet, case.inputs)
        except ModuleFormError:
            refused.append(case)

    check()
    assert len(refused) < 60


# Attributes ---------------------------------------------------------------------------------------------------------


class Split(nn.Module):
    """Attention by hand and parts by a list, with all numbers in attributes; a tensor and a shared object beside."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = width, heads, 8
        self.split_sizes = [heads * 8] * 3
        self.inner = Inner(heads * 8)
        self.embed, self.qkv, self.out = (
            nn.Linear(6, width),
            nn.Linear(width, 3 * heads * 8),
            nn.Linear(heads * 8, width),
        )
        self.scale_of = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 5)
        self.num_classes = 5

    def tokens(self, x: Tensor) -> Tensor:
        return self.embed(x) * self.scale_of

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).split(self.split_sizes, -1)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.inner.width)
        return self.head(x.view(b, n, self.embed_dim) + self.out(found))


class Inner:
    def __init__(self, width: int) -> None:
        self.width = width


def split() -> tuple[SuperNetwork, Tensor]:
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    return SuperNetwork.from_model(Split().eval().double(), x, FINE), x


def test_numbers_in_attributes_lists_and_objects_are_fitted() -> None:
    supernet, x = split()
    subnet = replace(supernet.space.minimal(), skipped=frozenset())
    made = assert_is_graph(supernet, subnet, x)
    assert isinstance(made, Split)
    assert (made.num_heads, made.head_dim, made.embed_dim, made.num_classes) == (2, 8, 12, 5)
    assert made.split_sizes == [16, 16, 16]
    assert made.inner.width == 16
    assert made.tokens(x).shape == (2, 7, 12)
    assert made.embed.out_features == 12
    model = supernet.model
    assert isinstance(model, Split)
    assert (model.num_heads, model.split_sizes, model.inner.width) == (4, [32, 32, 32], 32)


def test_every_width_of_it_is_its_graph() -> None:
    supernet, x = split()
    for name, sizes in supernet.space.widths.items():
        for size in sizes:
            subnet = replace(supernet.space.maximal(), widths={**supernet.space.maximal().widths, name: size})
            assert_is_graph(supernet, subnet, x)


def test_a_wrong_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the tests above: nothing but the right number passes."""
    supernet, _ = split()
    subnet = replace(supernet.space.minimal(), skipped=frozenset())
    right = Candidates.of

    def wrong(self: Candidates, place: Any, number: int) -> list[int]:
        return [3] if place.keys == ("num_heads",) else right(self, place, number)

    monkeypatch.setattr(Candidates, "of", wrong)
    with pytest.raises(ModuleFormError, match=r"Split.*test_form\.py:\d+"):
        supernet.extract(subnet, form="module")


class Swapped(nn.Module):
    """As many heads as entries in each: the shapes say nothing of which is which."""

    def __init__(self) -> None:
        super().__init__()
        self.entries, self.heads = 8, 8
        self.embed, self.value, self.head = nn.Linear(6, 20), nn.Linear(20, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.value(self.embed(x))
        x = x.view(len(x), -1, self.heads, self.entries).softmax(-1)
        return self.head((x * x.sum(-2, keepdim=True)).flatten(2))


def test_numbers_decide_where_shapes_do_not() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    supernet = SuperNetwork.from_model(Swapped().eval().double(), x, FINE)
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_is_graph(supernet, subnet, x)


class Written(nn.Module):
    """Has a width in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x.view(-1, 16))


def test_a_number_in_the_code_is_refused_with_the_line() -> None:
    x = torch.randn(2, 6)
    supernet = SuperNetwork.from_model(Written().eval(), x, FINE)
    with pytest.raises(ModuleFormError, match=r"Written.*test_form\.py:\d+: return self\.second\(x\.view\(-1, 16"):
        supernet.extract(supernet.space.minimal(), form="module")
    assert run(supernet.extract(supernet.space.minimal()), x).shape == (2, 3)
    assert run(supernet.extract(supernet.space.maximal(), form="module"), x).shape == (2, 3)


# Layers -------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """One of each layer that states its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up = nn.Embedding(9, 16), nn.ConvTranspose2d(16, 16, 3, padding=1)
        self.group, self.plain_group = nn.GroupNorm(1, 16), nn.GroupNorm(1, 16, affine=False)
        self.instance = nn.InstanceNorm2d(16)
        self.layer, self.root, self.slope = nn.LayerNorm(16), nn.RMSNorm(16), nn.PReLU(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).permute(0, 3, 1, 2)
        x = self.instance(self.plain_group(self.group(self.slope(self.up(x)))))
        return self.head(self.root(self.layer(x.permute(0, 2, 3, 1))))


@pytest.mark.parametrize("form", ["graph", "module"])
def test_layers_state_the_sizes_that_they_have(form: Any) -> None:
    ids = torch.randint(9, (2, 5, 4))
    supernet = SuperNetwork.from_model(Layers().eval(), ids, FINE)
    subnet = replace(supernet.space.minimal(), skipped=frozenset())
    made: Any = supernet.extract(subnet, form=form)
    words, up = made.words.weight.shape[1], made.up.weight.shape[1]
    assert (words, up) == (8, 8)
    assert (made.words.num_embeddings, made.words.embedding_dim) == (9, 8)
    assert (made.up.in_channels, made.up.out_channels) == (8, 8)
    assert made.group.num_channels == made.plain_group.num_channels == 8
    assert form == "graph" or made.instance.num_features == 8  # a graph calls its function
    assert made.layer.normalized_shape == made.root.normalized_shape == (8,)
    assert made.slope.num_parameters == 8
    assert made.head.in_features == 8
    assert_is_graph(supernet, subnet, ids, allowed=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_pytorch_has_other_heads_than_its_tokens(batch_first: bool, weights: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            x = self.embed(x)
            out, _ = self.attention(x, x, x, attn_mask=mask, need_weights=weights)
            return self.head(x.sin() * out)

    x, mask = torch.randn(5, 5, 6, dtype=torch.float64), torch.ones(5, 5, dtype=torch.bool).triu(1)
    supernet = SuperNetwork.from_model(Attend().eval().double(), (x, mask), FINE)
    heads = next(name for name, sizes in supernet.space.widths.items() if sizes[-1] == 4)
    full = supernet.space.maximal()
    made = assert_is_graph(supernet, replace(full, widths={**full.widths, heads: 2}), x, mask)
    assert isinstance(made.attention, NarrowAttention)
    assert (made.attention.embed_dim, made.attention.num_heads, made.attention.head_dim) == (16, 2, 4)
    assert type(supernet.extract(full, form="module").attention) is nn.MultiheadAttention


def test_narrow_attention_is_pytorchs_where_both_can_be() -> None:
    plain = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    other = copy.deepcopy(plain)
    other.__class__ = NarrowAttention
    vars(other)["scale"] = 0.5
    query, key = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    padding = torch.zeros(2, 7)
    padding[0, -2:] = float("-inf")
    mask = torch.randn(2 * 3, 5, 7)
    for settings_ in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        given_: dict[str, Any] = {"key_padding_mask": padding, "attn_mask": mask, **settings_}
        pairs = zip(other(query, key, key, **given_), plain(query, key, key, **given_), strict=True)
        for found, expected in pairs:
            torch.testing.assert_close(found, expected)
    masked = padding.bool()
    for query_, key_, masked_ in ((query, key, masked), (query[0], key[0], masked[0])):
        found = other(query_, key_, key_, key_padding_mask=masked_)
        torch.testing.assert_close(found, plain(query_, key_, key_, key_padding_mask=masked_))


# Skipped blocks -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.body, self.pair = nn.LayerNorm(16), nn.Linear(16, 16), Pair()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "after":
            return (x + self.body(self.norm(x))).relu()
        if self.kind == "pair":
            return x + self.pair(self.norm(x))[0] if self.kind == "pair" else x
        if self.kind == "code":
            return x + F.linear(x, self.body.weight, self.body.bias)
        return x + self.body(self.norm(x))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.layer(x), None


class Skips(nn.Module):
    def __init__(self, kind: str, before: bool) -> None:
        super().__init__()
        self.stem, self.before = nn.Linear(6, 16), before
        self.blocks = nn.Sequential(Block(kind), Block(kind))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.blocks(x.relu() if self.before else x))


@pytest.mark.parametrize(
    ("kind", "before", "identity"),
    [
        pytest.param("whole", False, True, id="the block is the module"),
        pytest.param("after", True, True, id="a ReLU after the block has nothing left to do"),
        pytest.param("after", False, False, id="a ReLU after the block has something to do"),
    ],
)
def test_a_skipped_module_is_taken_out(kind: str, before: bool, identity: bool) -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    supernet = SuperNetwork.from_model(Skips(kind, before).eval().double(), x, FINE)
    subnet = replace(supernet.space.minimal(), skipped=frozenset(supernet.space.blocks[:1]))
    made: Any = assert_is_graph(supernet, subnet, x)
    assert (type(made.blocks[0]) is nn.Identity) is identity
    assert isinstance(made.blocks[1], Block)
    assert not any(name.startswith(("blocks.0.body", "blocks.0.norm")) for name in made.state_dict())
    assert "blocks.1.body.weight" in made.state_dict()


class InOne(nn.Module):
    """Blocks in the forward of the model itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 16), Block(kind), nn.Linear(16, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        block = self.block
        if self.kind == "pair":
            return self.head((x + block.pair(block.norm(x))[0]).sin())
        if self.kind == "code":
            return self.head((x + F.linear(x, block.body.weight)).sin())
        x = (x + block.body(block.norm(x))).sin()
        return self.head(x + block.body(x))


class Mirrored(nn.Module):
    """A block that uses a computed weight twice: in its layer, and turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(6, 16), spectral_norm(nn.Linear(16, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + F.linear(self.body(x).relu(), self.body.weight.t()))


def test_a_skipped_layer_takes_the_modules_inside_it_along() -> None:
    model, x = Mirrored().eval().double(), torch.randn(4, 6, dtype=torch.float64)
    supernet = SuperNetwork.from_model(model, x, FINE)
    subnet = Subnet({}, frozenset(supernet.space.blocks))
    assert subnet.skipped
    with pytest.raises(ModuleFormError, match=r"supernet\.extract"):
        supernet.extract(subnet, form="module")
    torch.testing.assert_close(supernet.extract(subnet)(x), model.head(model.stem(x)))


def test_the_branch_of_a_skipped_block_gives_zeros() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    supernet = SuperNetwork.from_model(InOne("pair").eval().double(), x, FINE)
    subnet = replace(supernet.space.minimal(), skipped=frozenset(supernet.space.blocks))
    made: Any = assert_is_graph(supernet, subnet, x)
    assert isinstance(made.block.pair, GraphModule)
    assert type(made.block.norm) is nn.Identity
    single = made.float()(x.float())
    assert single.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "reason"), [("code", "is not a module, but code of InOne"), ("twice", "outside of it")]
)
def test_blocks_that_are_no_module_are_refused(kind: str, reason: str) -> None:
    x = torch.randn(4, 6)
    supernet = SuperNetwork.from_model(InOne(kind).eval(), x, FINE)
    subnet = replace(supernet.space.maximal(), skipped=frozenset(supernet.space.blocks[:1]))
    with pytest.raises(ModuleFormError, match=rf"{reason}.* at .*test_form\.py:\d+"):
        supernet.extract(subnet, form="module")


class Mixed(nn.Module):
    """With a table that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.table = torch.linspace(-1, 1, 36).view(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x @ self.table).relu())


def test_a_table_that_is_a_plain_attribute_is_one_in_double_precision() -> None:
    model, x = Mixed().eval(), torch.randn(2, 6)
    supernet = SuperNetwork.from_model(model, x, FINE)
    assert_is_graph(supernet, supernet.space.minimal(), x, allowed=1e-5)
    assert model.table.dtype == torch.float32


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] / 2


class Damped(nn.Module):
    """With a block that ends in an autograd function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + Halved.apply(self.inner(y)))


def test_a_skipped_block_with_an_autograd_function() -> None:
    x = torch.randn(2, 6)
    supernet = SuperNetwork.from_model(Damped().eval(), x, FINE)
    assert supernet.space.blocks
    subnet = replace(supernet.space.maximal(), skipped=frozenset(supernet.space.blocks))
    assert_is_graph(supernet, subnet, x, allowed=1e-5)


# Copies -------------------------------------------------------------------------------------------------------------


@given(case=cases(torch.float64))
@settings(max_examples=5)
def test_extracted_graphs_are_copied_and_saved(case: Case) -> None:
    graph = case.supernet.extract(case.subnet)
    for other in copies(graph):
        assert difference(run(other, case.inputs), run(graph, case.inputs))[0] == 0
        assert not {id(p) for p in other.parameters()} & {id(p) for p in graph.parameters()}


def test_module_forms_are_copied_and_saved() -> None:
    parts = (Tokens(12, (Attention(4, 0, "module", False, "layer", None),), 1, None, "mean"),)
    supernet = supernet_of(Network(Layer(4), parts, Head()), torch.float64)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    made = supernet.extract(supernet.space.minimal(), form="module")
    for other in copies(made):
        assert difference(run(other, x), run(made, x))[0] == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps, lambda one: torch.save(one, io.BytesIO())])
def test_a_program_says_that_it_cannot_be_copied(copied: Any) -> None:
    supernet, _ = split()
    with pytest.raises(ProgramError, match="views of the super-network's parameters"):
        copied(supernet.program(supernet.space.minimal()))


# The rest -----------------------------------------------------------------------------------------------------------


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    supernet, _ = split()
    before, state = copy.deepcopy(supernet.model.state_dict()), torch.get_rng_state()
    made = supernet.extract(supernet.space.minimal(), form="module")
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in supernet.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not {id(p) for p in made.parameters()} & {id(p) for p in supernet.parameters()}
    assert not any("forward" in vars(module) for module in made.modules())


def test_tensors_come_from_another_root() -> None:
    supernet, x = split()
    other = Split().eval().double()
    subnet = supernet.space.minimal()
    made = supernet.extract(subnet, other, form="module")
    assert difference(run(made, x), run(supernet.extract(subnet, other), x))[0] <= EXACT


def test_an_unknown_form_is_refused() -> None:
    supernet, _ = split()
    with pytest.raises(ValueError, match="'code' is not one of 'graph', 'module'"):
        supernet.extract(supernet.space.minimal(), form="code")  # type: ignore[call-overload]


def test_an_exported_program_has_no_classes() -> None:
    x = torch.randn(2, 6)
    supernet = SuperNetwork.from_model(torch.export.export(Written().eval(), (x,)))
    with pytest.raises(ModuleFormError, match="has no classes of its own"):
        supernet.extract(supernet.space.maximal(), form="module")


def test_numbers_of_a_module_are_found_in_containers() -> None:
    places = {str(place): number for place, number in numbers_of(Split(), "net")}
    assert places["net.num_heads"] == 4
    assert places["net.split_sizes[1]"] == 32
    assert places["net.inner.width"] == 32


def test_combinations_change_few_first() -> None:
    assert list(combinations([[1, 2], [3], [5, 6]])) == [(1, 3, 5), (2, 3, 5), (1, 3, 6), (2, 3, 6)]


def test_the_last_layer_of_a_skipped_region_is_in_no_form() -> None:
    """A region ends with a layer, in whose place its entry stands."""
    x = torch.randn(2, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 16)), nn.Linear(16, 3)).eval()
    supernet = SuperNetwork.from_model(model, x, replace(FINE, skipped_blocks=(("0", "1.1"),)))
    subnet = replace(supernet.space.maximal(), skipped=frozenset(supernet.space.blocks))
    counted = supernet.costs(subnet)["parameters"]
    for form in ("graph", "module"):
        made = supernet.extract(subnet, form=form)  # type: ignore[call-overload]
        assert sum(p.numel() for p in made.parameters()) == counted
