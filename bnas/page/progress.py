"""The plots of how the training, the search and the fine-tuning went on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, cycle

import numpy as np

from bnas.search import Objective
from bnas.search.progress import SearchProgress

from .front import ordered
from .members import Members
from .notes import History
from .plot import BLUE, CURVES, GREY, VERMILLION, Plot, Rule, Series
from .recorded import Recorded

# The plots of the training: what every epoch ended with.


def curves(run: Recorded) -> Iterator[Plot]:
    """The metric of the watched sub-networks, the loss and the learning rate after every epoch."""
    history = run.history
    if history is None or not history.epochs:
        return
    if any(one.metrics for one in history.epochs):
        yield _metrics(history)
    numbers = [one.epoch + 1 for one in history.epochs]
    for name, label, values, caption in (
        (
            "loss",
            "loss",
            [one.loss for one in history.epochs],
            "Loss of the first sub-network of each step, averaged over the epoch",
        ),
        (
            "learning-rate",
            "learning rate",
            [one.learning_rate for one in history.epochs],
            "At the last step of each epoch",
        ),
    ):
        line = Series(label, numbers, values, "line", BLUE)
        rows = [("epoch", label), *zip(numbers, values, strict=True)]
        caption = f"{caption}, on training data." if name == "loss" else f"{caption}."
        yield Plot(
            f"training-{name}", f"Training: {label}", caption, "epoch", label, (line,), tuple(_stages(history)), rows
        )


def tunings(run: Recorded) -> Iterator[Plot]:
    """The loss of each winner that is fine-tuned, after every epoch of its own fine-tuning."""
    found = {name: history.epochs for name, history in run.tunings.items() if history.epochs}
    if not found:
        return
    series = tuple(
        Series(name, [one.epoch + 1 for one in epochs], [one.loss for one in epochs], "line", colour, marker, dash)
        for (name, epochs), (colour, marker, dash) in zip(found.items(), cycle(CURVES), strict=False)
    )
    rows = [(name, one.epoch + 1, one.loss) for name, epochs in found.items() for one in epochs]
    caption = "Loss of each winner, averaged over the epoch, on training data. The largest winner is the first."
    head = ("winner", "epoch", "loss")
    yield Plot("tuning-loss", "Fine-tuning: loss", caption, "epoch", "loss", series, (), [head, *rows])


def _metrics(history: History) -> Plot:
    numbers = [one.epoch + 1 for one in history.epochs]
    names = list(history.epochs[0].metrics)
    values = {name: [one.metrics[name] for one in history.epochs] for name in names}
    percent = history.metric == "accuracy" and all(0 <= v <= 1 for some in values.values() for v in some)
    name = history.metric or "metric"
    factor, axis = (100.0, f"{name} (%)") if percent else (1.0, name)
    series = tuple(
        Series(name, numbers, [factor * v for v in values[name]], "line", colour, marker, dash)
        for name, (colour, marker, dash) in zip(names, cycle(CURVES), strict=False)
    )
    caption, title = "Measured after every epoch on validation data, with recalibrated BatchNorm", f"Training: {name}"
    if len(names) > 1:  # one alone is a network without choices, such as that of `bnas prune`
        caption += (
            ", for the same few sub-networks: the largest, the smallest and random ones that the last stage trains"
        )
        title += " of sub-networks"
    rows = [("epoch", *names), *zip(numbers, *(values[name] for name in names), strict=True)]
    return Plot("training-metric", title, f"{caption}.", "epoch", axis, series, tuple(_stages(history)), rows)


def _stages(history: History) -> Iterator[Rule]:
    """Where each stage but the first begins, as far as the training came."""
    ends = list(accumulate(one.epochs for one in history.stages))[:-1]
    for end, stage in zip(ends, history.stages[1:], strict=True):
        if end < history.epochs[-1].epoch + 1:
            yield Rule(end + 0.5, "x", f"stage: {', '.join(stage.train_dims or ('all',))}")


# The plots of how a search went on.


def progress(run: Recorded, members: Members) -> Iterator[Plot]:
    """The hypervolume after every evaluation, and the first objective of every evaluation with the best so far.

    What is to be small is at its best from the smallest sub-network on, which comes second: there is nothing to see.
    """
    if run.search is None:
        return
    if run.search.feasible:
        yield _hypervolume(run, members)
    yield _values(run, members, ordered(run.search.objectives, run.quality.name)[0])


def _hypervolume(run: Recorded, members: Members) -> Plot:
    assert run.search is not None
    found, shares = SearchProgress(run.search.objectives, run.search.constraints), []
    for one in run.search.evaluations:
        found.add(one)
        shares.append(found.hypervolume)
    numbers = list(range(1, len(shares) + 1))
    shown, best = members.quantities, found.ideal
    box = [
        f"{shown[name].label} from {shown[name].show(value)} to {shown[name].show(best[name])}"
        for name, value in found.corner.items()
    ]
    caption = (
        "Share of a box that the Pareto front dominates. The box reaches from the worst values of the maximal and the "
        f"minimal sub-network (of an accuracy: 0) to the best possible values: {', '.join(box)}. Comparable between "
        "searches of the same super-network."
    )
    line = Series("hypervolume of the front", numbers, [100 * share for share in shares], "step", BLUE)
    rows = [("evaluations", "hypervolume"), *zip(numbers, shares, strict=True)]
    title = "Progress of the search: hypervolume"
    return Plot("hypervolume", title, caption, "evaluations", "dominated share of the box (%)", (line,), rows=rows)


def _values(run: Recorded, members: Members, objective: Objective) -> Plot:
    assert run.search is not None
    shown = members.quantities[objective.name]
    done = [one for one in run.search.evaluations if one.failure is None]
    kept = {one.index for one in run.search.feasible}
    numbers = [one.index for one in done]  # the numbers that the page and `bnas export --subnet` call them by
    values = [one.values[objective.name] for one in done]
    costs = [objective.sign * v if one.index in kept else np.inf for one, v in zip(done, values, strict=True)]
    best = [objective.sign * float(v) for v in np.minimum.accumulate(costs)]
    known = [(n, v) for n, v in zip(numbers, best, strict=True) if np.isfinite(v)]
    name = shown.label
    series = (
        Series(f"{name} of each", numbers, [shown.factor * v for v in values], "cloud", GREY),
        Series("best so far", [n for n, _ in known], [shown.factor * v for _, v in known], "step", VERMILLION),
    )
    better = "higher" if objective.direction == "max" else "lower"
    caption = (
        f"Every evaluated sub-network, in order; {better} is better{f' ({shown.meaning})' if shown.meaning else ''}."
    )
    rows = [("evaluation", objective.name, "best"), *zip(numbers, values, best, strict=True)]
    return Plot(
        f"search-{objective.name}",
        f"Progress of the search: {name}",
        caption,
        "evaluation",
        shown.axis,
        series,
        rows=rows,
    )
