"""Targets: winners by name, each the most accurate sub-network within its bound, and latency as it is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest
import torch

import bnas
from bnas.config.file import load_config
from bnas.config.section import ConfigurationError
from bnas.data.digits import DigitNet, splits
from bnas.page import write_page
from bnas.passes import Subnet
from bnas.run.results.results import judged
from bnas.run.winners import stopwatch as stopwatches
from bnas.run.winners.stopwatch import MARGIN, Stopwatch
from bnas.run.winners.winners import FEW, ROUNDS, Target, Winners, checked_targets
from bnas.runtime import LatencySettings
from bnas.runtime.latency.measurement import Ratios
from bnas.search import Constraint, Evaluation, Objective, SearchError, SearchResult

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
MAXIMAL = {"macs": 100.0, "latency": 10.0}


def result(*values: tuple[float, float], **fixed: float) -> SearchResult:
    """Evaluations of these accuracies and MACs; a latency is a tenth of the MACs."""
    evaluations = [
        Evaluation(i, Subnet({"w": i + 1}), {"accuracy": a, "macs": m, "latency": m / 10}, 0.0)
        for i, (a, m) in enumerate(values)
    ]
    return SearchResult(OBJECTIVES, tuple(evaluations))


def within(found: SearchResult, watch: Any = None, **targets: str) -> Winners:
    watches = {} if watch is None else {"latency": watch}
    return Winners.within(found, checked_targets(targets), MAXIMAL, watches, 0.9, 0.01)


def test_a_winner_is_the_most_accurate_within_its_bound() -> None:
    found = result((0.9, 100), (0.8, 50), (0.85, 51), (0.8, 40), (0.7, 30))
    got = within(found, half="macs <= 50 %", third="macs <= 33", most="macs <= 100 %")
    assert {name: one.index for name, one in got.found.items()} == {"half": 3, "third": 4, "most": 0}
    assert not got.missed
    assert got.targets["half"] == Target(Constraint("macs", "<=", 0.5, True), False)


def test_where_none_is_within_a_bound_the_nearest_is_taken_and_marked() -> None:
    got = within(result((0.9, 100), (0.8, 50), (0.7, 30)), tiny="macs <= 10", half="macs <= 50 %")
    assert (got.found["tiny"].index, got.targets["tiny"].missed) == (2, True)
    assert not got.targets["half"].missed
    assert got.missed
    assert str(got.targets["tiny"]) == "macs <= 10 (missed)"


def test_what_is_to_be_fine_tuned_is_near_its_bound_where_something_is() -> None:
    found = result((0.9, 100), (0.6, 20), (0.5, 48), (0.55, 46), (0.7, 44), (0.4, 29))
    targets = checked_targets({"half": "macs <= 50 %", "few": "macs <= 40 %", "third": "macs <= 30 %"})
    got = Winners.within(found, targets, MAXIMAL, {}, 0.9, 0.01, tuned=True)
    assert {name: one.index for name, one in got.found.items()} == {"half": 3, "few": 5, "third": 5}
    assert not got.missed
    before = within(found, half="macs <= 50 %").found["half"]
    assert before.index == 4, "without fine-tuning the accuracy alone decides"


@dataclass
class Clock:
    """Stands in for ONNX Runtime: how long each sub-network takes, as a share of the maximal one."""

    slower: dict[int, float]
    asked: list[list[int]]

    def __call__(self, _: Any, subnets: Sequence[Subnet], settings: Any) -> Ratios:
        self.asked.append([one.widths["w"] - 1 for one in subnets])
        return Ratios({one: self.slower[one.widths["w"] - 1] for one in subnets}, 10.0, 1)


def watched(monkeypatch: pytest.MonkeyPatch, slower: dict[int, float]) -> tuple[Stopwatch, list[list[int]]]:
    clock = Clock(slower, [])
    monkeypatch.setattr(stopwatches, "ratios", clock)
    anything: Any = None
    return Stopwatch(anything, LatencySettings()), clock.asked


def test_a_bound_of_latency_holds_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two are predicted to be within the bound, and are not: the next most accurate one wins."""
    found = result((0.9, 100), (0.88, 50), (0.87, 49), (0.86, 48), (0.85, 47), (0.5, 10))
    watch, asked = watched(monkeypatch, {1: 0.6, 2: 0.501, 3: 0.49, 4: 0.4, 5: 0.1, 0: 1.0})
    got = within(found, watch, half="latency <= 50 %")
    assert (got.found["half"].index, got.targets["half"].missed) == (3, False)
    assert asked == [[1, 2, 3, 4]], "the candidates are measured together"
    exact = within(found, watch, ms="latency <= 5")
    assert exact.found["ms"].index == 3
    assert len(asked) == 1, "what was measured is not measured again"


def test_what_is_to_be_fine_tuned_was_measured_to_be_near_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found = result((0.9, 100), (0.8, 49), (0.7, 48), (0.6, 47))
    for measured, winner in (({1: 0.3, 2: 0.48, 3: 0.47}, 2), ({1: 0.3, 2: 0.6, 3: 0.31}, 3)):
        watch, _ = watched(monkeypatch, {0: 1.0, **measured})
        bounds = checked_targets({"half": "latency <= 50 %"})
        tuned = Winners.within(found, bounds, MAXIMAL, {"latency": watch}, 0.9, 0.01, tuned=True)
        assert tuned.found["half"].index == winner
        assert within(found, watch, half="latency <= 50 %").found["half"].index == 1


def test_of_what_is_far_from_its_bound_the_nearest_is_fine_tuned() -> None:
    found = result((0.9, 100), (0.8, 10), (0.3, 40), (0.5, 30))
    got = Winners.within(found, checked_targets({"half": "macs <= 50 %"}), MAXIMAL, {}, 0.9, 0.01, tuned=True)
    assert got.found["half"].index == 2


def test_a_latency_at_the_edge_of_its_bound_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, _ = watched(monkeypatch, {0: 1.0, 1: 0.5 * (1 + MARGIN) / 2, 2: 0.3})
    assert within(result((0.9, 100), (0.8, 50), (0.7, 30)), watch, half="latency <= 50 %").found["half"].index == 2


def test_where_no_latency_is_within_its_bound_the_quickest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = result((0.9, 100), *((0.8 - i / 100, 60 - i) for i in range(40)))
    watch, asked = watched(monkeypatch, {i: 1 - i / 100 for i in range(41)})
    got = within(found, watch, half="latency <= 5 %")
    assert got.targets["half"].missed
    assert len(asked) == ROUNDS
    assert sum(map(len, asked)) == FEW * ROUNDS
    assert got.found["half"].index == max(max(one) for one in asked)


def test_winners_with_targets_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, _ = watched(monkeypatch, {0: 1.0, 1: 0.4})
    got = within(result((0.9, 100), (0.8, 50)), watch, half="latency <= 50 %", few="macs <= 50 %")
    got.write(tmp_path / "winners.json")
    again = Winners.read(tmp_path / "winners.json")
    assert again == got
    assert again.measured is not None
    known, asked = watched(monkeypatch, {})
    known.recall(again.measured["latency"])
    known.measure([one.subnet for one in got.found.values()])
    assert not asked
    assert known.level_ms == 10.0


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"a/b": "macs <= 50 %"}, "target 'a/b': .*letters, digits"),
        ({"a" * 101: "macs <= 50 %"}, "at most 100"),
        ({"Original": "macs <= 50 %"}, "this name is reserved for your own network"),
        ({"half": "macs <= 50 %", "Half": "macs <= 40 %"}, "target 'Half': .*may confuse this name with 'half'"),
        ({"half": "accuracy >= 0.9"}, "winners are chosen by accuracy"),
        ({"half": "macs >= 50 %"}, "'macs >= 50 %' is not an upper bound"),
        ({"half": "macs 50"}, "must have the form"),
    ],
)
def test_targets_that_cannot_be_are_told(targets: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=told):
        tiny(targets=targets)
    data = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}, "targets": targets}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(ConfigurationError, match=told.rpartition(": ")[2]):
        load_config(tmp_path / "c.json")


def tiny(**changes: Any) -> bnas.Job:
    torch.manual_seed(0)
    settings = {"stages": [bnas.Stage(("depth", "width"), epochs=1)], "int8": None}
    search = bnas.SearchSettings(algorithm=bnas.NSGA2(population=4), num_evals=8)
    more: Any = {"num_bn_adaptation_samples": 12, "latency": LatencySettings(runs=3), "search": search}
    return bnas.Job(DigitNet().eval(), splits(), torch.zeros(1, 1, 8, 8), **{**more, **settings, **changes})


def test_the_search_looks_where_the_targets_are() -> None:
    def names(**changes: Any) -> list[str]:
        return [one.name for one in tiny(**changes).sought]

    assert names() == ["accuracy", "macs"]
    assert names(targets={"a": "latency <= 50 %", "b": "latency <= 33 %"}) == ["accuracy", "latency"]
    both = {"a": "latency <= 50 %", "b": "parameters <= 33 %"}
    assert names(targets=both, objectives=OBJECTIVES) == ["accuracy", "macs", "latency", "parameters"]
    with pytest.raises(SearchError, match="'accuracy' must be one of them"):
        tiny(objectives=OBJECTIVES[1:])


def test_a_run_hands_back_what_its_targets_ask_for(tmp_path: Path) -> None:
    job = tiny(targets={"half": "macs <= 50 %", "quick": "latency <= 80 %", "none": "parameters <= 10"})
    folder = tmp_path / "run"
    report = bnas.run_job(job, folder)
    original, half, quick, none = report.rows
    assert [one.name for one in report.rows] == ["original", "half", "quick", "none"]
    assert half.costs["macs"] <= 0.5 * original.costs["macs"]
    assert [one.target and one.target.missed for one in (original, half, none)] == [None, False, True]
    assert report.missed
    assert quick.target is not None
    assert quick.target.missed == (quick.latency.ratio is not None and quick.latency.ratio > 0.8)
    assert {"half.onnx", "quick.onnx", "none.safetensors"} <= {one.name for one in (folder / "subnets").iterdir()}
    winners = (folder / "winners.json").read_text()
    bnas.run_job(replaced(tiny(), targets=job.targets), folder, resume=True)
    assert (folder / "winners.json").read_text() == winners, "a resumed run measured again"
    page = write_page(folder).read_text(encoding="utf-8")
    assert "macs &lt;= 50 %" in page
    assert "missed, the nearest one" in page
    assert "reference minus" not in page, "winners are not held against a reference"


def test_a_bound_of_latency_is_held_against_the_latency_in_the_report(tmp_path: Path) -> None:
    rows = bnas.run_job(tiny(), tmp_path / "run").rows
    best = replaced(rows[1], latency=replaced(rows[1].latency, ratio=0.6, median_ms=6.0))
    shutil.rmtree(tmp_path / "run")
    for bound, missed in (("latency <= 59 %", True), ("latency <= 61 %", False), ("latency <= 5.9", True)):
        targets = {"best": Target(Constraint.parse(bound), False)}
        (_, judgement) = judged((rows[0], best), targets, ["latency"])
        assert judgement.target is not None
        assert judgement.target.missed == missed
        (_, kept) = judged((rows[0], best), targets, [])
        assert kept.target == targets["best"], "a latency that bnas does not measure stays as the search judged it"
