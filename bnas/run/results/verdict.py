"""The verdict on a run, in words: how much faster the winners are, with what accuracy, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bnas.run.latencies import LATENCY
from bnas.runtime.latency.speed import times_as_fast

from .commands import again_command, export_command, remedy
from .results import Report, Row, taken_of

if TYPE_CHECKING:
    from bnas.search import Constraint

SAME = 0.02
"""Latencies that differ by less than this share count as equal."""
SPOILT = 0.25
"""Share of the original's value of which a training may lose less without a remark."""
UNTRAINED = 0.5
"""Share of the larger value by which a winner may be better than the original without a remark."""
GAIN = 1.1
"""A winner with a smaller speed-up is called hardly faster."""


def speed_told(factor: float) -> str:
    """Return how fast a network is, where the original takes `factor` times as long."""
    if abs(factor - 1) < SAME:
        return "as fast as the original"
    if factor > 1:
        return f"{factor:.{2 if factor < 1.1 else 1}f}x faster than the original"
    return f"{1 / factor:.{2 if factor > 0.9 else 1}f}x slower than the original"


def speed_of(row: Row, original: Row) -> float:
    """Return how many times as long the original takes."""
    return times_as_fast(row.latency, original.latency)


def recommended(report: Report) -> Row:
    """Return the winner to try first.

    With targets, it is the first winner within its target. Without targets, it is the fastest winner within the allowed
    loss of accuracy, or the most accurate one if all lose more.
    """
    original, *winners = report.rows
    if any(row.target for row in winners):
        return next((row for row in winners if row.target and not row.target.missed), winners[0])
    enough = [row for row in winners if not _loses(report, row)]
    if enough:
        return max(enough, key=lambda row: speed_of(row, original))
    return min(winners, key=lambda row: report.quality.lost(row.accuracy, original.accuracy))


def verdict(report: Report, folder: Path, *, exportable: bool = True, tuned: bool = True) -> list[str]:
    """Return the verdict on the run in `folder`: a sentence on each winner, faults with their remedy, what is next.

    Args:
        report: The results of the run.
        folder: The run folder, as the user would write it in a command.
        exportable: Whether `bnas export` and `bnas tune` can read the folder (not after `bnas prune`).
        tuned: Whether the winners were fine-tuned.
    """
    chosen = recommended(report)
    lines = [*_winners(report), *(_untrained(report) or _spoilt(report)), *_missed(report), *_no_gain(report, chosen)]
    lines += [*_worse(report), *_coarse(report, exportable)]
    if exportable and not tuned and _loses(report, chosen):
        told = shlex.join(["bnas", "tune", str(folder), "--set", "fine_tune.epochs=8"])
        again = shlex.join(["bnas", "export", str(folder)])
        lines.append(f"Fine-tuning recovers {report.quality.name}: `{told}`, then `{again}`.")
    lines += _noise(report, folder, exportable)
    if not exportable:
        return [*lines, f"Next: the file to deploy is {folder / 'subnets' / f'{chosen.name}.onnx'}"]
    return [*lines, f"Next: `{export_command(folder, chosen.name, int8=_wins_in_int8(report, chosen))}`"]


def _winners(report: Report) -> Iterator[str]:
    """Return a sentence on each different winner."""
    original, *winners = report.rows
    names: dict[object, list[str]] = {}
    for row in winners:
        names.setdefault((row.subnet, row.accuracy), []).append(row.name)
    for row in winners:
        same = names[row.subnet, row.accuracy]
        if same[0] != row.name:
            continue
        who = " and ".join(f"`{name}`" for name in same)
        what = f"{speed_told(speed_of(row, original))} {report.quality.told(row.accuracy, original.accuracy)}"
        more = f"{_elsewhere(row, original)}{_in_int8(report, row)}"
        yield f"{who} {'is' if len(same) == 1 else 'are one network, which is'} {what}{more}."


def _elsewhere(row: Row, original: Row) -> str:
    """Return the speed-ups for the further latencies of the job, in words."""
    pairs = [(name, one, original.measured(name)) for name, one in row.latencies.items()]
    speeds = [(name, times_as_fast(one, first)) for name, one, first in pairs if first is not None]
    return "".join(f"; {name}: {speed_told(speed)}" for name, speed in speeds)


def _in_int8(report: Report, row: Row) -> str:
    int8, original = row.int8, report.rows[0]
    if int8 is None or int8.accuracy is None or int8.latency is None:
        return ""
    factor = times_as_fast(int8.latency, original.latency)
    return f"; in int8 {speed_told(factor)} {report.quality.told(int8.accuracy, original.accuracy)}"


def _wins_in_int8(report: Report, row: Row) -> bool:
    """Whether the int8 file is faster, and within the allowed loss of accuracy."""
    int8, first = row.int8, report.rows[0]
    if int8 is None or int8.accuracy is None or int8.latency is None:
        return False
    lost = report.quality.lost
    accurate = lost(int8.accuracy, first.accuracy) <= max(report.acc_delta, lost(row.accuracy, first.accuracy))
    return accurate and times_as_fast(int8.latency, first.latency) > (1 + SAME) * speed_of(row, first)


def _loses(report: Report, row: Row) -> bool:
    return report.quality.lost(row.accuracy, report.rows[0].accuracy) > report.acc_delta


def _missed(report: Report) -> Iterator[str]:
    missed = [row for row in report.rows if row.target and row.target.missed]
    keys = "(elasticity.min_width, divisor and width_multipliers)"
    for row in missed:
        assert row.target is not None
        told = f"Allow smaller widths {keys}, or evaluate more sub-networks (search.num_evals, or a larger budget)."
        if report.whole_space:
            told = f"All {report.evaluations:,} sub-networks were evaluated: allow smaller widths {keys}."
        what, near = _excess(row, row.target.bound, report.rows[0])
        if near:
            told = f"But the latency is not stable, and may be within the target: measure again, as below. {told}"
        name = f"`{row.name}` misses its target {row.target.bound}{what}"
        yield f"{name}: it is the nearest that the search found. {told}"
    if report.missed and not missed:
        yield (
            f"No sub-network came within {report.quality.amount(report.acc_delta)} of the original on the validation "
            "data: these are the best sub-networks found. Train for more epochs, or accept a larger loss (acc_delta)."
        )


def _excess(row: Row, bound: Constraint, original: Row) -> tuple[str, bool]:
    """Return a latency that exceeds its bound, in words, and whether the excess is smaller than the noise."""
    own, first = row.measured(bound.name), original.measured(bound.name)
    if own is None or first is None:
        return "", False
    taken = taken_of(own, first, bound)
    noise = max((one.spread for one in (own, first) if not one.stable), default=0.0)
    told = f"{100 * taken:.1f} %" if bound.relative else f"{taken:.3g} ms"
    return f" with {told}", taken <= bound.bound * (1 + noise)


def _untrained(report: Report) -> list[str]:
    """Return a remark if a winner is so much better than the original that this was hardly trained on the data."""
    quality, (original, *winners) = report.quality, report.rows
    best = min(winners, key=lambda row: quality.lost(row.accuracy, original.accuracy))
    limit = UNTRAINED * max(abs(best.accuracy), abs(original.accuracy))
    if quality.lost(original.accuracy, best.accuracy) <= max(limit, report.acc_delta):
        return []
    return [
        f"The original was hardly trained on these data: its {quality.name} is {quality.show(original.accuracy)}, that "
        f"of `{best.name}` {quality.show(best.accuracy)}. Train the model first and name its file in weights. If it is "
        "trained, prepare the data as in its training (size, mean, std, order of classes)."
    ]


def _spoilt(report: Report) -> Iterator[str]:
    """Return a remark if the training of the super-network spoilt the weights that it began with."""
    quality, maximal, first = report.quality, report.maximal, report.reference
    if maximal is None or quality.lost(maximal, first) <= max(SPOILT * abs(first), report.acc_delta):
        return
    yield (
        f"The training spoilt the model: its {quality.name} on the validation data, at full size, was "
        f"{quality.show(first)} before and is {quality.show(maximal)} now. Lower recipe.learning_rate, or train for "
        "more epochs; for another loss than cross-entropy, take the optimizer and the rate of your own training."
    )


def _worse(report: Report) -> Iterator[str]:
    """Return a remark on the winner that the fine-tuning made worse, by more than the allowed loss."""
    quality = report.quality
    tuned = [(row, quality.lost(row.accuracy, row.before)) for row in report.rows[1:] if row.before is not None]
    row, lost = max(tuned, key=lambda one: one[1], default=(report.rows[0], 0.0))
    if row.before is not None and lost > report.acc_delta:
        yield (
            f"The fine-tuning made `{row.name}` worse: its {quality.name} was {quality.show(row.before)} before and is "
            f"{quality.show(row.accuracy)} now. Train for longer (fine_tune.epochs, or a larger budget), or lower "
            "fine_tune.learning_rate."
        )


def _no_gain(report: Report, row: Row) -> Iterator[str]:
    """Return a remark if a winner is no smaller, or if fewer MACs bring no speed-up, as of small layers."""
    original = report.rows[0]
    if row.costs["macs"] >= original.costs["macs"]:
        yield f"`{row.name}` has as many MACs as the original: set a smaller bound, or allow a larger loss (acc_delta)."
        return
    timed = row.target is not None and row.measured(row.target.bound.name) is not None
    if not timed and speed_of(row, original) < GAIN:
        yield f"Fewer MACs save little time on this machine: use a target for time itself, such as `{LATENCY} <= 50 %`."


def _coarse(report: Report, exportable: bool) -> Iterator[str]:
    """Return a remark on the winner that loses most in int8, if that is more than the allowed loss."""
    lost = {row.name: _lost_in_int8(report, row) for row in report.rows[1:]}
    name = max(lost, key=lambda one: lost[one])
    if exportable and lost[name] > report.acc_delta:
        shown = report.quality.amount(float(f"{lost[name]:.2g}"))
        yield (
            f"In int8, `{name}` loses {shown} more than in float: keep the first and the last layer in float "
            "(export.exclude), or ignore rare large activations (export.method=percentile), and export again."
        )


def _lost_in_int8(report: Report, row: Row) -> float:
    """Return by how much a winner is worse in int8 than in float; 0 if it was not measured."""
    found = None if row.int8 is None else row.int8.accuracy
    return 0.0 if found is None else report.quality.lost(found, row.accuracy)


def _noise(report: Report, folder: Path, exportable: bool) -> Iterator[str]:
    unstable = [row for row in report.rows if not row.latency.stable]
    if not unstable:
        return
    what, runs = remedy(unstable[0].latency.runs)
    names = ", ".join(f"`{row.name}`" for row in unstable)
    told = again_command(folder, runs)
    if not exportable:
        own, first = (str(folder / "subnets" / f"{row.name}.onnx") for row in (report.rows[-1], report.rows[0]))
        told = shlex.join(["bnas", "bench", own, "--against", first, "--runs", str(runs)])
    yield f"The latency of {names} is not stable ({unstable[0].latency.unstable}). {what}: `{told}`"
