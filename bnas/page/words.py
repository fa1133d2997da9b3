"""Text for values (label, unit, digits) and for choices (skipped blocks, smaller widths and kernels)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bnas.passes import Subnet

# Labels, units and digits of the values of a run.

KNOWN = {
    "macs": ("MACs", "", "multiply-accumulates for one sample"),
    "parameters": ("parameters", "", "stored numbers"),
    "activations": ("activations", "", "numbers that layers output for one sample"),
    "peak_memory": ("peak memory", "B", "bytes of tensors for one sample"),
    "latency": ("latency", "ms", "predicted by a model fitted to measured sub-networks"),
}
"""Label, unit and meaning of bnas's own values."""
SCALES = ((1e9, "G", "billions"), (1e6, "M", "millions"), (1e3, "k", "thousands"))


@dataclass(frozen=True)
class Quantity:
    """A value as it is shown: multiplied by `factor`, with a unit."""

    name: str
    label: str
    axis: str
    """The label with the unit."""
    unit: str
    factor: float
    meaning: str = ""

    def show(self, value: float) -> str:
        """The value as text, with its unit."""
        number = value * self.factor
        if not self.unit and self.name not in {**KNOWN, **ACCURACIES}:  # a metric of the user's own, of any size
            return f"{number:.4g}"
        if self.unit == "ms" and 0 < abs(number) < 0.1:  # a small network: two decimals would hide all differences
            return f"{number:.3g} ms"
        digits = 2 if self.unit == "%" else max(0, 3 - len(str(int(abs(number)))))
        return f"{number:.{digits}f} {self.unit}".rstrip()


ACCURACIES = {"accuracy": "accuracy", "int8_accuracy": "accuracy in int8"}
"""Labels of those that are shown in percent."""


def quantity(name: str, values: Iterable[float], place: str | None = None) -> Quantity:
    """Choose label and unit for `name`, given its `values`: accuracy in percent, large numbers in k, M, ...

    With a `place` the value is a latency there.
    """
    most = max((abs(value) for value in values), default=0.0)
    if name in ACCURACIES and most <= 1:
        label = ACCURACIES[name]
        return Quantity(name, label, f"{label} (%)", "%", 100.0, "on validation data")
    label, unit, meaning = KNOWN.get(name, (name, "", ""))
    if place is not None:
        _, unit, meaning = KNOWN["latency"]
        meaning = f"latency on {place}, {meaning}"
    scale, prefix, word = next((one for one in SCALES if most >= one[0]), (1.0, "", ""))
    shown = f"{prefix}{unit}"
    axis = shown if unit else word
    return Quantity(name, label, f"{label} ({axis})" if axis else label, shown, 1 / scale, meaning)


# A choice in words: which blocks are skipped, which widths and kernels are smaller.


def told(subnet: Subnet, maximal: Subnet, most: int | None = None) -> str:
    """Compare `subnet` with the maximal one, in a line for each kind of choice with at most `most` names."""
    lines = list(_lines(subnet, maximal, most))
    return "\n".join(lines) or "everything is kept"


def _lines(subnet: Subnet, maximal: Subnet, most: int | None) -> Iterator[str]:
    if subnet.skipped:
        yield f"skipped blocks ({len(subnet.skipped)}): {_some(sorted(subnet.skipped)[:most], len(subnet.skipped))}"
    for kind, chosen, full in (
        ("widths", subnet.widths, maximal.widths),
        ("kernels", subnet.kernels, maximal.kernels),
    ):
        smaller = [name for name, size in chosen.items() if size < full.get(name, size)]
        if smaller:
            told = [f"{name} {chosen[name]} of {full[name]}" for name in smaller[:most]]
            yield f"smaller {kind} ({len(smaller)} of {len(full)}): {_some(told, len(smaller))}"


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if len(names) < count else "")
