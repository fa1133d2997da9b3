"""How the values of a run are called and written: names, units and digits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KNOWN = {
    "macs": ("MACs", "", "multiply-accumulates for one sample"),
    "parameters": ("parameters", "", "numbers that are stored"),
    "activations": ("activations", "", "numbers that layers hand on for one sample"),
    "peak_memory": ("peak memory", "B", "bytes of tensors for one sample"),
    "latency": ("latency", "ms", "predicted by a model that was fitted to measured sub-networks"),
}
"""Label, unit and meaning of the values that bnas measures itself."""
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
        digits = 2 if self.unit == "%" else max(0, 3 - len(str(int(abs(number)))))
        return f"{number:.{digits}f} {self.unit}".rstrip()


def quantity(name: str, values: Iterable[float]) -> Quantity:
    """How `name` is shown where `values` occur: accuracy in percent, large numbers in thousands, millions, ..."""
    most = max((abs(value) for value in values), default=0.0)
    if name == "accuracy" and most <= 1:
        return Quantity(name, "accuracy", "accuracy (%)", "%", 100.0, "on validation data")
    label, unit, meaning = KNOWN.get(name, (name, "", ""))
    scale, prefix, word = next((one for one in SCALES if most >= one[0]), (1.0, "", ""))
    shown = f"{prefix}{unit}"
    axis = shown if unit else word
    return Quantity(name, label, f"{label} ({axis})" if axis else label, shown, 1 / scale, meaning)
