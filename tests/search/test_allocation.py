"""What pruning removes: a path that only gets smaller, cheapest steps first, and the first that keeps a bound."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import SearchSpace, Subnet
from bnas.search.allocation import Importance, first_within, global_path, undo_steps, uniform_path


@st.composite
def problems(draw: st.DrawFn, blocks: bool = True) -> tuple[SearchSpace, Importance, Callable[[Subnet], float]]:
    """A chain of layers: the cost is a sum of products of neighbouring widths, and of what the blocks cost."""
    fulls = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    widths = {f"w{i}": tuple(sorted({*draw(st.sets(st.integers(1, n))), n})) for i, n in enumerate(fulls)}
    names = tuple(f"b{i}" for i in range(draw(st.integers(0, 2)) if blocks else 0))
    worth = st.floats(0, 100)
    importance = Importance(
        {name: -np.sort(-np.array([draw(worth) for _ in range(sizes[-1])])) for name, sizes in widths.items()},
        {name: draw(worth) for name in names},
    )
    prices = {name: draw(st.integers(1, 30)) for name in names}

    def cost(subnet: Subnet) -> float:
        sizes = [3, *(subnet.widths.get(name, some[-1]) for name, some in widths.items()), 2]
        return sum(a * b for a, b in itertools.pairwise(sizes)) + sum(
            prices[b] for b in names if b not in subnet.skipped
        )

    return SearchSpace(widths, names), importance, cost


def kept(space: SearchSpace, subnet: Subnet) -> dict[str, int]:
    """All that is chosen, blocks too: 1 is kept."""
    return {**subnet.widths, **{name: int(name not in subnet.skipped) for name in space.blocks}}


@given(problem=problems(), uniform=st.booleans())
def test_a_path_only_gets_smaller_and_cheaper(
    problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]], uniform: bool
) -> None:
    space, importance, cost = problem
    path = list(uniform_path(space, importance) if uniform else global_path(space, importance, cost))
    assert space.canonical(path[0]) == space.canonical(space.maximal())
    assert cost(path[-1]) == min(
        cost(space.decode(v)) for v in itertools.product(*(range(len(x.choices)) for x in space.variables()))
    )
    for before, after in itertools.pairwise(path):
        space.check(after)
        many = [kept(space, one) for one in (before, after)]
        assert all(many[1][name] <= many[0][name] for name in many[0])
        assert cost(after) < cost(before)
        assert uniform or sum(many[1][name] != many[0][name] for name in many[0]) == 1


def cheapest(space: SearchSpace, importance: Importance, cost: Callable[[Subnet], float], now: Subnet) -> float:
    """The least price of all steps that are left, by looking at each."""
    prices = []
    for name, sizes in space.widths.items():
        if (place := sizes.index(now.widths[name])) > 0:
            after = Subnet({**now.widths, name: sizes[place - 1]}, now.skipped)
            lost = sum(importance.widths[name][sizes[place - 1] : now.widths[name]])
            prices.append(lost / (cost(now) - cost(after)))
    for name in set(space.blocks) - now.skipped:
        after = Subnet(now.widths, now.skipped | {name})
        prices.append(importance.blocks[name] / (cost(now) - cost(after)))
    return min(prices)


@given(problem=problems())
def test_each_step_of_the_global_path_is_the_cheapest(
    problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]],
) -> None:
    space, importance, cost = problem
    for before, after in itertools.pairwise(global_path(space, importance, cost)):
        lost = sum(sum(importance.widths[n][after.widths[n] : before.widths[n]]) for n in space.widths)
        lost += sum(importance.blocks[name] for name in after.skipped - before.skipped)
        paid = lost / (cost(before) - cost(after))
        assert paid == pytest.approx(cheapest(space, importance, cost, before))


def test_a_path_that_takes_dear_steps_is_noticed() -> None:
    space = SearchSpace({"a": (1, 2), "b": (1, 2)}, ())
    importance = Importance({"a": np.array([9.0, 1.0]), "b": np.array([9.0, 5.0])})
    costs = {(2, 2): 10, (1, 2): 8, (2, 1): 8, (1, 1): 6}

    def cost(subnet: Subnet) -> float:
        return costs[subnet.widths["a"], subnet.widths["b"]]

    path = list(global_path(space, importance, cost))
    assert [dict(one.widths) for one in path] == [{"a": 2, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 1}]
    dear = cheapest(space, importance, cost, path[0])
    assert dear == 0.5 != importance.of("b", (2, 1)) / 2


def test_the_price_may_be_for_each_entry() -> None:
    space = SearchSpace({"a": (1, 5), "b": (1, 2)}, ())
    importance = Importance({"a": np.array([9.0, 1, 1, 1, 1]), "b": np.array([9.0, 2.0])})

    def cost(subnet: Subnet) -> float:
        return subnet.widths["a"] + 100 * subnet.widths["b"]

    first = [list(global_path(space, importance, cost, price))[1] for price in ("cost", "entry")]  # type: ignore[arg-type]
    assert [dict(one.widths) for one in first] == [{"a": 5, "b": 1}, {"a": 1, "b": 2}]


@given(problem=problems())
def test_a_path_may_start_anywhere(problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]]) -> None:
    """The rest of a path is the path from there."""
    space, importance, cost = problem
    path = list(global_path(space, importance, cost))
    middle = len(path) // 2
    assert list(global_path(space, importance, cost, start=path[middle])) == path[middle:]


def test_a_step_that_saves_nothing_is_not_taken() -> None:
    """A width inside of a skipped block."""
    space = SearchSpace({"inner": (1, 2)}, ("block",))
    importance = Importance({"inner": np.array([5.0, 5.0])}, {"block": 0.0})

    def cost(subnet: Subnet) -> float:
        return 1 + (0 if "block" in subnet.skipped else subnet.widths["inner"])

    assert list(global_path(space, importance, cost)) == [
        Subnet({"inner": 2}),
        Subnet({"inner": 2}, frozenset(["block"])),
    ]


@given(problem=problems(blocks=False), fraction=st.floats(0, 1))
def test_uniform_keeps_the_fraction_of_every_width(
    problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]], fraction: float
) -> None:
    """Whatever the fraction: the path has the sub-network of the smallest sizes that are no smaller."""
    space, importance, _ = problem
    wanted = {n: min(s for s in sizes if s >= fraction * sizes[-1] - 1e-9) for n, sizes in space.widths.items()}
    assert wanted in [dict(one.widths) for one in uniform_path(space, importance)]


def test_uniform_skips_the_least_important_blocks() -> None:
    space = SearchSpace({"a": (2, 4)}, ("x", "y", "z"))
    path = list(uniform_path(space, Importance({"a": np.ones(4)}, {"x": 2.0, "y": 1.0, "z": 3.0})))
    assert [(one.widths["a"], sorted(one.skipped)) for one in path] == [
        (4, []), (4, ["y"]), (2, ["y"]), (2, ["x", "y"]), (2, ["x", "y", "z"])
    ]  # fmt: skip


@given(problem=problems(), share=st.floats(0, 1))
def test_the_first_that_keeps_the_bound(
    problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]], share: float
) -> None:
    """As by looking at all of them; fewer are asked for, each once; a tighter bound never gives more of anything."""
    space, importance, cost = problem
    path = list(global_path(space, importance, cost))
    asked = list[Subnet]()

    def within(bound: float) -> Callable[[Subnet], bool]:
        return lambda subnet: asked.append(subnet) or cost(subnet) <= bound  # type: ignore[func-returns-value]

    bound = share * cost(path[0])
    place = first_within(path, within(bound))
    found = None if place is None else path[place]
    assert found == next((one for one in path if cost(one) <= bound), None)
    assert len(asked) == len(set(asked)) <= len(path).bit_length() + 1
    tighter = first_within(path, within(0.9 * bound))
    if found is not None and tighter is not None:
        assert all(kept(space, path[tighter])[name] <= size for name, size in kept(space, found).items())


@given(problem=problems(), share=st.floats(0, 1), tries=st.integers(0, 5) | st.just(100))
def test_what_is_given_back_keeps_the_bound_and_nothing_more_of_the_path_fits(
    problem: tuple[SearchSpace, Importance, Callable[[Subnet], float]], share: float, tries: int
) -> None:
    space, importance, cost = problem
    whole = list(global_path(space, importance, cost))
    bound = max(share * cost(whole[0]), cost(whole[-1]))
    path = whole[: next(place for place, one in enumerate(whole) if cost(one) <= bound) + 1]
    asked = list[Subnet]()
    found = undo_steps(path, lambda one: asked.append(one) or cost(one) <= bound, tries)  # type: ignore[func-returns-value]
    sizes = kept(space, found)
    assert cost(found) <= bound
    assert len(asked) <= tries
    assert all(low <= sizes[name] for name, low in kept(space, path[-1]).items())
    if tries == 100:
        for name in sizes:
            above = min((size for one in path if (size := kept(space, one)[name]) > sizes[name]), default=None)
            widths = {key: above if key == name else size for key, size in found.widths.items()}
            more = Subnet({key: size or 0 for key, size in widths.items()}, found.skipped - {name})
            assert above is None or cost(more) > bound


def test_a_large_last_step_leaves_room_for_what_went_before_it() -> None:
    """The big step saves 8 where 1 was too much; the two before it come back as far as they fit."""
    sizes = {"big": (1, 2), "small": (1, 2, 3)}
    path = [Subnet({"big": b, "small": s}) for b, s in ((2, 3), (2, 2), (2, 1), (1, 1))]
    assert all(set(one.widths) == set(sizes) for one in path)
    cost = lambda one: 8 * one.widths["big"] + one.widths["small"]  # noqa: E731
    assert undo_steps(path, lambda one: cost(one) <= 16) == Subnet({"big": 1, "small": 3})
    assert undo_steps(path, lambda one: cost(one) <= 10) == Subnet({"big": 1, "small": 2})
