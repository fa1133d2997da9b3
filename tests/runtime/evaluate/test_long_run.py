"""What thousands of evaluations leave in their process: nothing that grows with them; and what is kept has a bound."""

from __future__ import annotations

import copy
import gc
import linecache
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import graph_module
from training_cases import batches, supernet

from bnas.passes import Subnet
from bnas.passes.assembly import frames, skeleton
from bnas.runtime import Evaluator, SuperNetwork, supernetwork
from bnas.runtime.program import KnownViews
from bnas.search import Remote, workers

EVALUATIONS = 2000


@dataclass(frozen=True)
class Kept:
    """What a process holds."""

    lines: int
    """Entries of linecache."""
    texts: int
    """Of code, that torch.fx keeps."""
    objects: int
    """That the garbage collector knows."""
    blocks: int
    """Of memory that Python handed out: also for what the collector does not know, such as texts."""
    resident: int
    """Bytes in memory; 0 where there is no /proc."""

    @classmethod
    def now(cls) -> Kept:
        gc.collect()
        objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        return cls(len(linecache.cache), len(graph_module._loader.eval_cache), objects, blocks, resident())


def resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def texts() -> set[str]:
    """The names of the texts that torch.fx or linecache keep."""
    gc.collect()
    return {name for name in linecache.cache if name.startswith("<eval_with_key>")} | set(
        graph_module._loader.eval_cache
    )


@pytest.fixture
def net() -> SuperNetwork:
    return supernet(elasticity={"width_step": 1, "min_width": 1, "divisor": 1})


def evaluations(net: SuperNetwork) -> Callable[[int], None]:
    """Does so many, alone and together, with all that a search asks for beside."""
    data = batches(1, size=4)
    evaluator, generator = Evaluator(net, data, data, group=10), np.random.default_rng(0)

    def run(count: int) -> None:
        for turn in range(count // 20):
            chosen = [net.space.sample(generator) for _ in range(20)]
            assert all(isinstance(one, dict) for one in evaluator.evaluate_many(chosen[:10]))
            for subnet in chosen[10:]:
                evaluator.evaluate(subnet)
            net.program(chosen[0])(data[0][0]).sum().backward()
            net.extract(chosen[1], form="graph" if turn % 10 else "module")

    return run


def test_2000_evaluations_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than one object, and two blocks, for each: caches are emptied from time to time, and fill again."""
    monkeypatch.setattr(skeleton, "KNOWN", 64)
    net = supernet(elasticity={"width_step": 1, "min_width": 1, "divisor": 1}, width=64)
    net._views = KnownViews(limit=64)
    run = evaluations(net)
    run(200)
    before = Kept.now()
    run(EVALUATIONS)
    after = Kept.now()
    assert after.lines - before.lines <= 5
    assert after.texts - before.texts <= 5
    assert after.objects - before.objects < EVALUATIONS
    assert after.blocks - before.blocks < 2 * EVALUATIONS
    assert after.resident - before.resident <= 50e6  # oneDNN keeps up to 1,024 kernels of its own


def test_what_stays_is_noticed(net: SuperNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.fx alone does it: four texts for each evaluation, and their lines."""
    monkeypatch.setattr(frames, "forget_text", lambda name: None)
    run, others = evaluations(net), texts()
    run(20)
    before = Kept.now()
    run(100)
    after = Kept.now()
    assert after.lines - before.lines > 300
    assert after.texts - before.texts > 300
    assert after.blocks - before.blocks > 300
    monkeypatch.undo()
    for name in texts() - others:
        frames.forget_text(name)


# The text of code stays as long as the code.


def failing(net: SuperNetwork) -> Exception:
    """What a sub-network raises that is gone, on an image of another type."""
    module = net.extract(net.space.minimal())
    with pytest.raises(RuntimeError, match="type") as caught:
        module(torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    return caught.value


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_traceback_shows_the_lines_of_a_module_that_is_gone(net: SuperNetwork) -> None:
    before, error = texts(), failing(net)
    (name,) = texts() - before
    assert name in shown(error)
    assert "self.stem(x)" in shown(error)
    del error
    assert texts() == before


@pytest.mark.parametrize(
    "another",
    [
        copy.deepcopy,
        lambda module: module.recompile() and module,
        lambda module: copy.deepcopy(copy.deepcopy(module)),
        lambda module: pickle.dumps(module) and module,
    ],
    ids=["copy", "recompile", "copy of a copy", "pickle"],
)
def test_copies_let_go_too(net: SuperNetwork, another: Callable[[Any], Any]) -> None:
    before = texts()
    module = net.extract(net.space.minimal())
    twin = another(module)
    (mine, *others) = sorted(texts() - before)
    assert len(others) == (twin is not module)
    assert all(linecache.getlines(name) for name in (mine, *others))
    del module
    assert len(texts() - before) == 1
    del twin
    assert texts() == before


def test_programs_of_one_structure_share_the_text(net: SuperNetwork) -> None:
    before = texts()
    sizes = net.space.widths["stem"]
    programs = [net.program(Subnet({"stem": size})) for size in sizes]
    (name,) = texts() - before
    del net.skeleton.__dict__["_frames"]
    assert programs.pop().forward.__code__.co_filename == name
    assert texts() - before == {name}
    programs.clear()
    assert texts() == before


# What is kept on purpose has a bound.


def test_slots_and_structures_have_a_bound(net: SuperNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "KNOWN", 128)
    generator = np.random.default_rng(0)
    slots, structures = 0, 0
    for _ in range(200):
        net.extract(net.space.sample(generator))
        slots, structures = max(slots, len(net.skeleton._known)), max(structures, len(net.skeleton._known_live))
        assert len(net.skeleton._known) <= 128
        assert len(net.skeleton._known_live) <= 2
    assert slots > 60
    assert structures == 2


def test_views_have_a_bound(net: SuperNetwork) -> None:
    net._views = KnownViews(limit=10)
    generator, most = np.random.default_rng(0), 0
    for _ in range(50):
        net.program(net.space.sample(generator))
        most = max(most, len(net._views._known))
    assert most == 10


def test_costs_at_other_sizes_have_a_bound(net: SuperNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernetwork, "KNOWN_SIZES", 3)
    for height in (4, 5, 6, 7, 4):
        assert net.costs(net.space.minimal(), {"height": height})["macs"] > 0
        assert len(net._costs_at) <= 3
    assert len(net._costs_at) == 2


class Counted:
    """Counts how often it was made."""

    made = 0

    def __init__(self, number: int) -> None:
        Counted.made += 1
        self.number = number

    def evaluate_many(self, subnets: Any) -> list[Any]:
        return [{"accuracy": float(self.number)} for _ in subnets]


def test_what_workers_made_has_a_bound(net: SuperNetwork) -> None:
    Counted.made = 0
    for number in (*range(workers.MADE), *range(workers.MADE), workers.MADE, 0):
        Remote(Counted, number).evaluate_many([net.space.minimal()])
    assert Counted.made == workers.MADE + 2
