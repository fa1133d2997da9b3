"""The plots of the training: what every epoch ended with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, cycle

from bnas.page.files import History
from bnas.page.palette import BLUE, CURVES
from bnas.page.plot import Plot, Rule, Series
from bnas.page.recorded import Recorded


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
            "Mean over the steps of an epoch, of the first sub-network of each",
        ),
        (
            "learning-rate",
            "learning rate",
            [one.learning_rate for one in history.epochs],
            "Of the last step of an epoch",
        ),
    ):
        line = Series(label, numbers, values, "line", BLUE)
        rows = [("epoch", label), *zip(numbers, values, strict=True)]
        caption = f"{caption}, on training data." if name == "loss" else f"{caption}."
        yield Plot(
            f"training-{name}", f"Training: {label}", caption, "epoch", label, (line,), tuple(_stages(history)), rows
        )


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
    caption = (
        "Of the same few sub-networks after every epoch, with recalibrated BatchNorm, on validation data: "
        "the largest, the smallest and random ones of what the last stage trains."
    )
    rows = [("epoch", *names), *zip(numbers, *(values[name] for name in names), strict=True)]
    title = f"Training: {name} of sub-networks"
    return Plot("training-metric", title, caption, "epoch", axis, series, tuple(_stages(history)), rows)


def _stages(history: History) -> Iterator[Rule]:
    """Where each stage but the first begins, as far as the training came."""
    ends = list(accumulate(one.epochs for one in history.stages))[:-1]
    for end, stage in zip(ends, history.stages[1:], strict=True):
        if end < history.epochs[-1].epoch + 1:
            yield Rule(end + 0.5, "x", f"stage: {', '.join(stage.train_dims or ('all',))}")
