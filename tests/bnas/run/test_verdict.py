"""The verdict on a run: sentences by hand, the winner to begin with, remedies, and commands that bnas knows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bnas.cli.app import app
from bnas.passes import Subnet
from bnas.run.quality import Quality
from bnas.run.results.results import Quantised, Report, Row
from bnas.run.results.verdict import recommended, speed_told, verdict
from bnas.run.winners.winners import Target
from bnas.runtime import Latency
from bnas.search import Constraint

RUN = Path("runs/a b")


def latency(ms: float, unstable: str | None = None, runs: int = 50) -> Latency:
    return Latency(ms, (ms, ms), 0.01, ms, (ms, ms), runs, 1, 1, 1, None, unstable, machine={})


def row(name: str, accuracy: float, ms: float, width: int = 8, **more: Any) -> Row:
    return Row(name, accuracy, {"macs": 1, "parameters": 1}, latency(ms), Subnet({"a": width}), **more)


ORIGINAL = replace(row("original", 0.9, 2.3), costs={"macs": 2, "parameters": 2})


def report(*winners: Row, missed: bool = False, original: Row = ORIGINAL) -> Report:
    return Report((original, *winners), 0.9, 0.01, 10, missed, {}, 100)


def commands(lines: Sequence[str]) -> list[str]:
    return [one for line in lines for one in re.findall(r"`(bnas [^`]*)`", line)]


def known(lines: Sequence[str]) -> bool:
    """Whether bnas has all commands and options in the text."""
    codes = [CliRunner().invoke(app, [*shlex.split(one)[1:], "--help"]).exit_code for one in commands(lines)]
    return bool(codes) and not any(codes)


def test_a_winner_is_told_in_one_sentence_with_the_next_command() -> None:
    lines = verdict(report(row("best", 0.896, 1.0)), Path("runs/a"))
    assert lines == [
        "`best` is 2.3x faster than the original at 0.4 points less accuracy.",
        "Next: `bnas export runs/a --subnet best --onnx model.onnx`",
    ]
    assert known(lines)
    assert "'runs/a b'" in verdict(report(row("best", 0.9, 1.0)), RUN)[-1]


def test_verdict_and_table_tell_the_same_speed() -> None:
    """That of the rounds in which both were measured: here the medians alone would say 2.3x."""
    own = row("best", 0.9, 1.0)
    slower = replace(
        own, latency=replace(own.latency, ratio=0.5), int8=Quantised(0.9, replace(own.latency, ratio=0.25))
    )
    found = report(slower)
    table = [cell for column in found.table().columns for cell in column._cells]
    assert [str(cell).split("\n")[1] for cell in table if "1.000 ms" in str(cell) and "%" not in str(cell)] == ["2.00x"]
    assert [str(cell).split("\n")[2] for cell in table if "1.000 ms" in str(cell) and "%" in str(cell)] == ["4.00x"]
    first, *_ = verdict(found, RUN)
    assert "2.0x faster" in first
    assert "in int8 4.0x faster" in first


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (2.34, "2.3x faster than the original"),
        (1.05, "1.05x faster than the original"),
        (1.01, "as fast as the original"),
        (0.99, "as fast as the original"),
        (0.5, "2.0x slower than the original"),
    ],
)
def test_speeds_in_words(factor: float, told: str) -> None:
    assert speed_told(factor) == told


def test_by_a_metric_of_which_less_is_better_the_lower_one_is_recommended() -> None:
    found = replace(report(row("worse", 2.0, 1.0), row("better", 0.85, 1.2, 16)), quality=Quality("mae", "min"))
    assert recommended(found).name == "better"
    assert recommended(replace(found, quality=Quality("mae", "max"))).name == "worse"
    assert "at mae 0.85 (original: 0.9; lower is better)" in verdict(found, RUN)[1]


def test_one_network_with_two_names_is_told_once() -> None:
    lines = verdict(report(row("best", 0.9, 1.0), row("smallest", 0.9, 1.0)), RUN)
    assert (
        lines[0]
        == "`best` and `smallest` are one network, which is 2.3x faster than the original at the same accuracy."
    )
    assert len(lines) == 2


def test_the_fastest_that_keeps_the_accuracy_is_recommended() -> None:
    best, smallest = row("best", 0.91, 2.0), row("smallest", 0.895, 1.0, 4)
    assert recommended(report(best, smallest)).name == "smallest"
    assert recommended(report(best, replace(smallest, accuracy=0.8))).name == "best"
    assert recommended(report(replace(best, accuracy=0.7), replace(smallest, accuracy=0.8))).name == "smallest"


def test_a_target_that_is_missed_is_said_and_not_recommended() -> None:
    third, half = Constraint.parse("latency <= 33 %"), Constraint.parse("macs <= 50 %")
    winners = row("third", 0.9, 1.0, target=Target(third, True)), row("half", 0.85, 1.2, 4, target=Target(half, False))
    lines = verdict(report(*winners, missed=True), RUN)
    assert (
        "`third` misses its target latency <= 33 % with 43.5 %: it is the nearest that the search found."
        in " ".join(lines)
    )
    assert "or evaluate more sub-networks (search.num_evals, or a larger budget)" in " ".join(lines)
    all_of_them = " ".join(verdict(replace(report(*winners, missed=True), whole_space=True), RUN))
    assert "All 10 sub-networks were evaluated: allow smaller widths (elasticity.min_width" in all_of_them
    assert "num_evals" not in all_of_them
    assert "--subnet half" in lines[-1]


@pytest.mark.parametrize(
    ("bound", "unstable", "told", "again"),
    [
        ("latency <= 43 %", "noisy", "with 43.5 %:", True),
        ("latency <= 43 %", None, "with 43.5 %:", False),
        ("latency <= 33 %", "noisy", "with 43.5 %:", False),  # more than the noise
        ("latency <= 0.98 ms", "noisy", "with 1 ms:", True),
        ("macs <= 40 %", "noisy", "macs <= 40 %:", False),
    ],
)
def test_a_target_missed_by_less_than_the_noise_is_measured_again(
    bound: str, unstable: str | None, told: str, again: bool
) -> None:
    winner = row("half", 0.9, 1.0, target=Target(Constraint.parse(bound), True))
    noisy = replace(winner, latency=replace(winner.latency, spread=0.1, unstable=unstable))
    (line,) = [one for one in verdict(report(noisy, missed=True), RUN) if "misses its target" in one]
    assert told in line
    assert ("measure again, as below" in line) == again


@pytest.mark.parametrize(
    ("quality", "reference", "maximal", "spoilt"),
    [
        (Quality(), 0.9, 0.6, True),
        (Quality(), 0.9, 0.8, False),
        (Quality(), 0.9, None, False),
        (Quality("mae", "min"), 0.5, 0.9, True),
        (Quality("mae", "min"), 0.5, 0.2, False),
        (Quality("mae", "min"), 0.001, 0.002, False),  # twice as much, and less than acc_delta
    ],
)
def test_a_training_that_spoils_the_model_is_said_with_a_remedy(
    quality: Quality, reference: float, maximal: float | None, spoilt: bool
) -> None:
    found = replace(report(row("best", 0.896, 1.0)), quality=quality, reference=reference, maximal=maximal)
    lines = [one for one in verdict(found, RUN) if "The training spoilt the model" in one]
    assert bool(lines) is spoilt
    if spoilt:
        assert f"was {quality.show(reference)} before and is {quality.show(maximal or 0)} now" in lines[0]
        assert "Lower recipe.learning_rate" in lines[0]


@pytest.mark.parametrize(
    ("quality", "original", "winner", "untrained"),
    [
        (Quality(), 0.084, 0.514, True),
        (Quality(), 0.45, 0.6, False),
        (Quality("mae", "min"), 0.5, 0.1, True),
        (Quality("mae", "min"), 0.1, 0.07, False),
        (Quality("score", "max"), -3.0, 0.5, True),
        (Quality("mae", "min"), 0.002, 0.0005, False),  # a quarter, and less than acc_delta
    ],
)
def test_an_original_that_was_not_trained_is_said_in_place_of_a_spoilt_one(
    quality: Quality, original: float, winner: float, untrained: bool
) -> None:
    found = report(row("worse", original, 1.2, 4), row("best", winner, 1.0), original=row("original", original, 2.3))
    maximal = 0.9 if quality.direction == "min" else 0.1
    lines = verdict(replace(found, quality=quality, reference=0.5, maximal=maximal), RUN)
    told = [one for one in lines if "The original was hardly trained on these data" in one]
    assert bool(told) is untrained
    assert any("The training spoilt the model" in one for one in lines) is not untrained
    if untrained:
        assert f"is {quality.show(original)}, that of `best` {quality.show(winner)}" in told[0]
        assert "weights" in told[0]


def test_what_costs_accuracy_is_fine_tuned_unless_it_was() -> None:
    lines = verdict(report(row("best", 0.8, 1.0), missed=True), RUN, tuned=False)
    assert any("No sub-network came within 1 point of the original" in line for line in lines)
    assert "bnas tune 'runs/a b' --set fine_tune.epochs=8" in commands(lines)
    assert known(lines)
    assert not any("bnas tune" in line for line in verdict(report(row("best", 0.8, 1.0)), RUN, tuned=True))
    assert not any("bnas tune" in line for line in verdict(report(row("best", 0.9, 1.0)), RUN, tuned=False))


@pytest.mark.parametrize(("runs", "wanted"), [(2, 50), (50, 200)])
def test_a_noisy_latency_comes_with_what_to_do(runs: int, wanted: int) -> None:
    noisy = replace(
        row("best", 0.9, 1.0), latency=latency(1.0, "noisy: quartiles 20% of the median apart, limit 10%", runs)
    )
    lines = verdict(report(noisy), RUN)
    assert "The latency of `best` is not stable (noisy: quartiles 20% of the median apart, limit 10%)." in lines[1]
    assert f"bnas export 'runs/a b' --set latency.runs={wanted}" in commands(lines)
    assert known(lines)


def test_fewer_macs_that_save_no_time_are_called_so() -> None:
    told = "Fewer MACs save little time on this machine"
    bound = Target(Constraint.parse("latency <= 98 %"), False)
    assert told in " ".join(verdict(report(row("best", 0.9, 2.28)), RUN))
    assert told not in " ".join(verdict(report(row("best", 0.9, 2.28, target=bound)), RUN))
    assert told not in " ".join(verdict(report(row("best", 0.9, 1.0)), RUN))


def test_a_winner_of_the_original_s_size_is_called_so() -> None:
    same = replace(row("best", 0.9, 2.28), costs=ORIGINAL.costs)
    told = "`best` has as many MACs as the original: set a smaller bound"
    assert told in " ".join(verdict(report(same), RUN))
    assert "Fewer MACs" not in " ".join(verdict(report(same), RUN))
    assert told not in " ".join(verdict(report(row("best", 0.9, 2.28)), RUN))


def test_int8_is_proposed_where_it_wins() -> None:
    quick, poor = Quantised(0.9, latency(0.5)), Quantised(0.5, latency(0.5))
    lines = verdict(report(row("best", 0.9, 1.0, int8=quick)), RUN)
    assert lines[0].endswith("at the same accuracy; in int8 4.6x faster than the original at the same accuracy.")
    assert lines[-1].endswith("--subnet best --onnx model.int8.onnx --int8`")
    assert known(lines)
    assert "--int8" not in verdict(report(row("best", 0.9, 1.0, int8=poor)), RUN)[-1]
    assert "int8" not in " ".join(verdict(report(row("best", 0.9, 1.0, int8=Quantised(failure="no"))), RUN))


def test_a_winner_that_loses_much_in_int8_has_a_remedy() -> None:
    fine, poor = Quantised(0.891, latency(0.5)), Quantised(0.526, latency(0.5))
    found = report(row("best", 0.9, 1.0, int8=fine), row("small", 0.88, 0.8, int8=poor))
    told = [line for line in verdict(found, RUN) if line.startswith("In int8")]
    assert len(told) == 1
    assert told[0].startswith("In int8, `small` loses 35 points more than in float: keep the first and the last layer")
    assert not any(line.startswith("In int8") for line in verdict(found, RUN, exportable=False))
    for int8 in (fine, Quantised(failure="no"), None):
        assert not any(line.startswith("In int8") for line in verdict(report(row("best", 0.9, 1.0, int8=int8)), RUN))


@pytest.mark.parametrize(("before", "is_told"), [(0.7, True), (0.65, False), (0.5, False), (None, False)])
def test_a_fine_tuning_that_makes_a_winner_worse_is_told(before: float | None, is_told: bool) -> None:
    measured = report(row("half", 0.9, 5, before=0.6), row("quarter", 0.645, 3, before=before))
    told = [line for line in verdict(measured, RUN) if line.startswith("The fine-tuning made `quarter` worse")]
    assert bool(told) == is_told
    assert all("was 70.00 % before and is 64.50 % now" in line for line in told)


def test_further_latencies_are_told_by_their_names() -> None:
    original = row("original", 0.9, 2.3, latencies={"phone": latency(10.0)})
    quick = row("best", 0.9, 1.0, latencies={"phone": latency(4.0)})
    told = verdict(report(quick, original=original), RUN)[0]
    assert told == (
        "`best` is 2.3x faster than the original at the same accuracy; phone: 2.5x faster than the original."
    )


def test_what_pruning_left_is_a_file_to_deploy() -> None:
    noisy = replace(row("pruned", 0.8, 1.0), latency=latency(1.0, "not warm"))
    lines = verdict(report(noisy), RUN, exportable=False)
    assert lines[-1] == f"Next: the file to deploy is {RUN / 'subnets' / 'pruned.onnx'}"
    files = "'runs/a b/subnets/pruned.onnx' --against 'runs/a b/subnets/original.onnx'"
    assert commands(lines) == [f"bnas bench {files} --runs 200"]
    assert known(lines)
