"""Choices as values: vectors, JSON, pickles and canonical forms go there and back."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import Elasticity, SearchSpace, Subnet, SubnetError, Variable
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import networks, subnets

SIZES = st.sets(st.integers(1, 64), min_size=1, max_size=4).map(lambda sizes: tuple(sorted(sizes)))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    widths = draw(st.dictionaries(st.text(max_size=5), SIZES, max_size=4))
    blocks = draw(st.lists(st.text(max_size=5), max_size=4, unique=True))
    around = (
        st.lists(st.frozensets(st.sampled_from(blocks), min_size=1), min_size=1, max_size=2) if blocks else st.none()
    )
    kernels = draw(st.dictionaries(st.text(max_size=5), SIZES, max_size=3))
    inside, inside_kernels = (
        {name: tuple(draw(around)) for name in sizes if blocks and draw(st.booleans())} for sizes in (widths, kernels)
    )
    return SearchSpace(widths, tuple(blocks), inside, kernels, inside_kernels)


def vectors(space: SearchSpace) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, len(variable.choices) - 1) for variable in space.variables()))


@given(space=spaces(), data=st.data())
def test_vectors_and_subnets_are_the_same(space: SearchSpace, data: st.DataObject) -> None:
    vector = data.draw(vectors(space))
    subnet = space.decode(vector)
    space.check(subnet)
    assert space.encode(subnet) == vector
    assert space.decode(np.array(vector, dtype=np.int64)) == subnet
    assert space.decode(space.encode(subnet)) == subnet
    other = data.draw(vectors(space))
    assert (space.decode(other) == subnet) == (other == vector)


@given(space=spaces(), data=st.data())
def test_files_and_processes_give_the_subnet_back(space: SearchSpace, data: st.DataObject) -> None:
    subnet = data.draw(subnets(space))
    for twin in (
        Subnet.from_json(json.loads(json.dumps(subnet.to_json()))),
        pickle.loads(pickle.dumps(subnet)),
        copy.deepcopy(subnet),
        Subnet(
            dict(reversed(subnet.widths.items())),
            set(subnet.skipped),  # type: ignore[arg-type]
            dict(reversed(subnet.kernels.items())),
        ),
    ):
        assert twin == subnet
        assert hash(twin) == hash(subnet)
        assert not twin < subnet
        assert not subnet < twin
        assert twin.to_json() == subnet.to_json()
    assert pickle.loads(pickle.dumps(space)) == space


@given(space=spaces(), data=st.data())
def test_the_canonical_form_is_one_of_the_same_network(space: SearchSpace, data: st.DataObject) -> None:
    subnet = data.draw(subnets(space))
    canonical = space.canonical(subnet)
    space.check(canonical)
    assert space.canonical(canonical) == canonical
    assert canonical.skipped == subnet.skipped
    for found, given_, known, inside in (
        (canonical.widths, subnet.widths, space.widths, space.inside),
        (canonical.kernels, subnet.kernels, space.kernels, space.kernels_inside),
    ):
        assert found.keys() == known.keys()
        for name, size in found.items():
            uses = inside.get(name, ())
            unused = bool(uses) and all(any(block in subnet.skipped for block in around) for around in uses)
            assert size == (known[name][-1] if unused else given_[name])


@given(network=networks(), data=st.data())
def test_the_canonical_subnet_computes_the_same(network: object, data: st.DataObject) -> None:
    elasticity = Elasticity(width_multipliers=(1.0, 0.5), min_width=1, divisor=1)
    module, inputs = network.module, network.example_inputs  # type: ignore[attr-defined]
    supernet = SuperNetwork.from_model(module, inputs, elasticity)
    subnet = data.draw(subnets(supernet.space))
    canonical = supernet.space.canonical(subnet)
    found, expected = (supernet.extract(one)(inputs) for one in (canonical, subnet))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert supernet.costs(canonical) == supernet.costs(subnet)


def test_only_what_nobody_uses_is_made_canonical() -> None:
    space = SearchSpace({"a": (1, 2), "b": (1, 2)}, ("x", "y"), {"a": (frozenset("x"), frozenset("xy"))})
    small = {"a": 1, "b": 1}
    assert space.canonical(Subnet(small, frozenset("x"))) == Subnet({"a": 2, "b": 1}, frozenset("x"))
    assert space.canonical(Subnet(small, frozenset("y"))) == Subnet(small, frozenset("y"))
    assert space.canonical(Subnet()) == Subnet({"a": 2, "b": 2})


@given(space=spaces(), seed=st.integers(0, 100))
def test_the_space_counts_and_samples_itself(space: SearchSpace, seed: int) -> None:
    assert space.size == len(space) == math.prod(len(variable.choices) for variable in space.variables())
    for place, skipped, subnet in ((-1, (), space.maximal()), (0, space.blocks, space.minimal())):
        widths, kernels = ({n: sizes[place] for n, sizes in known.items()} for known in (space.widths, space.kernels))
        assert subnet == Subnet(widths, frozenset(skipped), kernels)
    first, second = (space.sample(np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    space.check(first)


def test_samples_are_uniform_and_come_from_the_generator() -> None:
    space, generator = SearchSpace({"a": (1, 2, 3)}, ("x",)), np.random.default_rng(0)
    counts = dict.fromkeys((space.decode([d, w]) for d in range(2) for w in range(3)), 0)
    for _ in range(1200):
        counts[space.sample(generator)] += 1
    assert all(150 < count < 250 for count in counts.values())


@given(space=spaces(), seed=st.integers(0, 100), full=st.floats(0, 1))
def test_samples_are_enlarged_and_never_made_smaller(space: SearchSpace, seed: int, full: float) -> None:
    small, large = (space.encode(space.sample(np.random.default_rng(seed), p)) for p in (0, full))
    for variable, before, after in zip(space.variables(), small, large, strict=True):
        assert after in (before, len(variable.choices) - 1)
    assert space.sample(np.random.default_rng(seed), 1) == space.maximal()


def test_the_share_of_enlarged_choices_is_the_one_asked_for() -> None:
    space, generator = SearchSpace({"a": (1, 2)}, ("x",), {}, {"k": (3, 5)}), np.random.default_rng(0)
    ones = np.mean([space.encode(space.sample(generator, 0.5)) for _ in range(2000)], axis=0)
    assert np.abs(ones - 0.75).max() < 0.04


SMALL = SearchSpace({"a": (1, 2, 3), "b": (4, 8)}, ("x", "y"), kernels={"k": (3, 5)})


def test_a_seed_gives_the_same_sub_network_and_numpys_generator_goes_on() -> None:
    assert SMALL.sample(7) == SMALL.sample(np.int64(7)) == SMALL.sample(np.random.default_rng(7))
    assert len({SMALL.sample(seed) for seed in range(500)}) == SMALL.size
    generator = np.random.default_rng(0)
    assert len({SMALL.sample(generator) for _ in range(20)}) > 10


def test_a_generator_of_pytorch_goes_on_and_can_be_repeated() -> None:
    def drawn(seed: int) -> list[Subnet]:
        generator = torch.Generator().manual_seed(seed)
        return [SMALL.sample(generator) for _ in range(20)]

    before = torch.get_rng_state()
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 10
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


@pytest.mark.parametrize(
    "given", [-1, True, None, 1.5, "0", np.random.RandomState(0)], ids=lambda one: type(one).__name__
)
def test_what_gives_no_randomness_is_refused(given: Any) -> None:
    with pytest.raises(SubnetError, match=r"cannot draw with .*give a seed .* numpy.random.default_rng\(0\)"):
        SMALL.sample(given)


def test_a_large_space_has_a_size_and_is_true() -> None:
    space = SearchSpace({f"w{n}": (1, 2, 3, 4) for n in range(40)}, ())
    assert space.size == 4**40 > sys.maxsize
    assert space
    assert SearchSpace({}, ())
    with pytest.raises(OverflowError, match=r"has 1.2e\+24 sub-networks, .* read `space.size`"):
        len(space)
    edge = SearchSpace({f"w{n}": (1, 2) for n in range(62)}, ())
    assert len(edge) == edge.size == 2**62 <= sys.maxsize


def test_a_space_says_what_may_change() -> None:
    assert repr(SMALL) == (
        "SearchSpace with 48 sub-networks\n"
        "  2 widths: a (1 to 3), b (4 to 8)\n"
        "  2 skippable blocks: x, y\n"
        "  1 kernel: k (3 to 5)"
    )
    limited = SearchSpace({}, tuple(f"b{n}" for n in range(8)), chains=(("b0", "b1"),), depth_limit=1)
    assert repr(limited) == (
        "SearchSpace with 192 sub-networks\n"
        "  8 skippable blocks, at most 1 of a chain: b0, b1, b2, b3, b4, b5 and 2 more"
    )
    assert repr(SearchSpace({}, ())) == "SearchSpace with 1 sub-network"
    assert repr(SearchSpace({f"w{n}": (1, 2) for n in range(20_000)}, ())).startswith("SearchSpace with 4.0e+6020 sub")


@given(space=spaces(), seed=st.integers(0, 100))
def test_a_short_sub_network_is_shown_as_python_makes_it(space: SearchSpace, seed: int) -> None:
    subnet = space.sample(seed)
    assert eval(repr(subnet), {"Subnet": Subnet}) == subnet


def test_a_long_sub_network_is_abbreviated() -> None:
    assert repr(Subnet({"b": 1, "a": 2}, frozenset("yx"))) == "Subnet(widths={'a': 2, 'b': 1}, skipped={'x', 'y'})"
    long = Subnet({f"w{n:02}": n for n in range(14)})
    assert repr(long) == "Subnet(widths={'w00': 0, 'w01': 1, 'w02': 2, 'w03': 3, 'w04': 4, 'w05': 5, ... 8 more})"


def test_variables_are_named_and_ordered() -> None:
    space = SearchSpace({"conv": (4, 8)}, ("block",))
    assert space.variables() == (Variable("block", "depth", (0, 1)), Variable("conv", "width", (4, 8)))
    assert space.decode([0, 1]) == Subnet({"conv": 8}, frozenset({"block"}))
    space = SearchSpace({"conv": (4, 8)}, ("block",), {}, {"conv": (3, 5)})
    assert space.variables()[-1] == Variable("conv", "kernel", (3, 5))
    assert space.decode([1, 1, 0]) == Subnet({"conv": 8}, frozenset(), {"conv": 3})


@pytest.mark.parametrize(
    ("settings", "widths", "blocks"),
    [
        ({}, {"a": (1, 2, 3), "b": (5,)}, ("x",)),
        ({"kernel": False}, {"a": (1, 2, 3), "b": (5,)}, ("x",)),
        ({"depth": False}, {"a": (1, 2, 3), "b": (5,)}, ()),
        ({"width": False}, {"a": (3,), "b": (5,)}, ("x",)),
        ({"width_indicator": 2}, {"a": (2, 3), "b": (5,)}, ("x",)),
        ({"width_indicator": 9}, {"a": (1, 2, 3), "b": (5,)}, ("x",)),
        ({"depth": False, "width": False, "width_indicator": 2}, {"a": (3,), "b": (5,)}, ()),
    ],
)
def test_a_stage_uses_a_part_of_the_space(
    settings: dict[str, int], widths: dict[str, tuple[int, ...]], blocks: tuple[str, ...]
) -> None:
    space = SearchSpace({"a": (1, 2, 3), "b": (5,)}, ("x",), {}, {"a": (3, 5, 7)})
    part = space.restrict(**settings)  # type: ignore[arg-type]
    assert (part.widths, part.blocks) == (widths, blocks)
    assert part.kernels == {"a": (3, 5, 7) if settings.get("kernel", True) else (7,)}
    for subnet in (part.minimal(), part.maximal()):
        space.check(subnet)
    assert part.maximal() == space.maximal()


def test_subnets_are_values() -> None:
    one, other = Subnet({"a": 1, "b": 2}), Subnet({"b": 2, "a": 1})
    assert {one: 1}[other] == 1
    assert one != Subnet({"a": 1, "b": 3})
    assert one != Subnet({"a": 1, "b": 2}, frozenset("x"))
    assert one != {"a": 1, "b": 2}
    assert sorted([Subnet({"b": 1}), Subnet({"a": 2}), Subnet({"a": 1})])[0] == Subnet({"a": 1})
    with pytest.raises(TypeError):
        one.widths["a"] = 3  # type: ignore[index]
    given = {"a": 1}
    made = Subnet(given)
    given["a"] = 2
    assert made.widths["a"] == 1


SPACE = SearchSpace({"conv": (4, 8)}, ("block",))


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([0], "a vector of 1 genes; this space has 2 variables"),
        ([0, 0, 0], "a vector of 3 genes"),
        ([0, 2], r"conv: gene 2 is not one of 0\.\.1"),
        ([-1, 0], r"block: gene -1 is not one of 0\.\.1"),
    ],
)
def test_a_vector_of_another_space_is_refused(vector: list[int], reason: str) -> None:
    with pytest.raises(SubnetError, match=reason):
        SPACE.decode(vector)


@pytest.mark.parametrize(
    ("subnet", "reason"),
    [
        (Subnet({"conv": 5}), r"conv: width 5 is not one of \(4, 8\)"),
        (Subnet({"other": 4}), "there is no elastic width 'other'; there are conv"),
        (Subnet({}, frozenset({"other"})), "'other' is not a skippable block; there are block"),
        (Subnet({}, frozenset(), {"conv": 3}), "there is no elastic kernel 'conv'; there are none"),
    ],
)
def test_a_subnet_of_another_space_is_refused(subnet: Subnet, reason: str) -> None:
    for method in (SPACE.check, SPACE.encode):
        with pytest.raises(SubnetError, match=reason):
            method(subnet)


def test_an_empty_space_says_so() -> None:
    empty = SearchSpace({}, ())
    assert empty.size == 1
    assert empty.maximal() == empty.minimal() == Subnet()
    with pytest.raises(SubnetError, match="there are none"):
        empty.check(Subnet({"conv": 4}))
    with pytest.raises(SubnetError, match="there are none"):
        empty.check(Subnet({}, frozenset({"block"})))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([], "is a mapping with the keys widths, skipped, kernels"),
        ({"width": {}}, "a sub-network has no 'width'; its keys are widths, skipped, kernels"),
        ({"widths": [4]}, r"map names to whole numbers, not \[4\]"),
        ({"widths": {"conv": 4.0}}, "map names to whole numbers"),
        ({"widths": {"conv": True}}, "map names to whole numbers"),
        ({"kernels": None}, "map names to whole numbers, not None"),
        ({"skipped": "block"}, "is a list of block names, not 'block'"),
        ({"skipped": [1]}, "is a list of block names"),
        ({"skipped": 3}, "is a list of block names"),
    ],
)
def test_other_json_is_refused(data: object, reason: str) -> None:
    with pytest.raises(SubnetError, match=reason):
        Subnet.from_json(data)  # type: ignore[arg-type]


def test_the_costs_that_a_run_writes_beside_a_choice_are_not_read() -> None:
    chosen = Subnet({"conv": 4}, frozenset({"block"}))
    assert Subnet.from_json({**chosen.to_json(), "costs": {"macs": 12}}) == chosen
    with pytest.raises(SubnetError, match="a sub-network has no 'cost'"):
        Subnet.from_json({**chosen.to_json(), "cost": {"macs": 12}})


def test_keys_that_are_missing_choose_nothing() -> None:
    assert Subnet.from_json({}) == Subnet()
