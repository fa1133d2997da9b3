"""The analysis of `bnas inspect`: which parts of a model are elastic, which are not, and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from torch import nn

from bnas.config.settings import dynamic_of, elasticity_of, example_inputs_of
from bnas.data.inputs import Example, Input, example_of
from bnas.passes import BnasError, Elasticity
from bnas.passes.errors import add_note
from bnas.passes.frontend.candidates import Dynamic
from bnas.passes.rigidity import rigid_share
from bnas.passes.wording import count
from bnas.run.runner import model_of
from bnas.runtime import SuperNetwork

from .headline import headline

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from bnas.config.configuration import Configuration


@dataclass(frozen=True)
class Inspection:
    """The result of the analysis of a model."""

    model: str
    supernet: SuperNetwork
    seconds: float
    """CPU seconds for tracing, analysis and search space."""
    example: Example
    """The inputs that the model was traced with."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of dynamic axes, by name, for the costs; other axes have the size of the example."""
    named: bool = False
    """Whether the user named the dynamic axes, so that no other axes were tried."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data; "macs" are for one sample with the sizes of the example, or with "sizes"."""
        space = self.supernet.space
        least, most = (self.supernet.costs(one, self.sizes) for one in (space.minimal(), space.maximal()))
        rigid, found = rigid_share(self.supernet.analysis.types), self.supernet.analysis.choices.widths
        return {
            "model": self.model,
            "inputs": self._inputs(),
            "dynamic": self._dynamic(),
            "sizes": dict(self.sizes),
            "blocks": list(space.blocks),
            "width": {
                name: {"choices": list(c), "members": list(found[name].members)} for name, c in space.widths.items()
            },
            "kernel": {name: {"choices": list(c), "sizes": self._sizes(name)} for name, c in space.kernels.items()},
            "space_size": space.size,
            "macs": {"minimal": least["macs"], "maximal": most["macs"]},
            "parameters": {"minimal": least["parameters"], "maximal": most["parameters"]},
            "rigid_share": {"total": sum(rigid.values()), "reasons": rigid},
            "diagnostics": [{"place": d.place, "reason": d.reason} for d in self.supernet.diagnostics],
            "seconds": round(self.seconds, 3),
        }

    def _inputs(self) -> list[dict[str, Any]]:
        """Name, shape, type and range of each input."""
        return [
            {"name": one.name, "shape": list(one.shape), "type": one.type, "range": one.range and list(one.range)}
            for one in self.example.inputs
        ]

    def _dynamic(self) -> dict[str, Any]:
        """The dynamic axes of each input, and the reason for each axis that is static."""
        axes, sizes = self.supernet.dynamic, self.supernet.ir.sizes
        static = {
            f"{one.name}[{axis}]": sizes.static.get(f"{one.name}[{axis}]") or self._untried(one, axis)
            for one in self.example.inputs
            for axis in range(len(one.shape))
            if axis not in axes.get(str(one.name), {})
        }
        return {
            "axes": {name: {str(axis): title for axis, title in known.items()} for name, known in axes.items()},
            "steps": sizes.steps,
            "limits": sizes.limits,
            "static": static,
        }

    def _untried(self, one: Input, axis: int) -> str:
        """Return why no other size of an axis was tried."""
        if self.named:
            return "not named by --dynamic"
        if axis == 0:
            return "its size differs from the batch of the first input"
        return "its size is 1" if one.shape[axis] == 1 else "channels"

    def _axes(self) -> list[tuple[str, str, str]]:
        """Return a row for each axis of each input: input, axis, allowed sizes."""
        found, rows = self._dynamic(), []
        for one in self.example.inputs:
            for axis, size in enumerate(one.shape):
                title = found["axes"].get(one.name, {}).get(str(axis))
                step = found["steps"].get(title, 1)
                steps = f"{size} plus a multiple of {step}" if step > 1 else ""
                may = ", ".join(filter(None, (steps, found["limits"].get(title, "")))) or "any size"
                told = found["static"].get(f"{one.name}[{axis}]", "").partition("\n")[0]
                rows.append((str(one.name), str(axis), f"{title}: {may}" if title else f"static, {size}: {told}"))
        return rows

    def _sizes(self, name: str) -> list[list[int]]:
        """Return the sizes of a kernel's axes, for each of its choices."""
        kernel = self.supernet.analysis.choices.kernels.found[name]
        return [list(kernel.at(choice)) for choice in kernel.choices]

    def tables(self) -> list[Table | str]:
        """Return the output for a terminal with 80 columns or more: summary, then details without empty tables."""
        data, rigid = self.to_json(), rigid_share(self.supernet.analysis.types)
        blocks, widths, kernels = data["blocks"], data["width"], data["kernel"]
        refused = _by_reason(data["diagnostics"])
        parts = [
            _table(f"{len(blocks)} skippable blocks", ("blocks",), [(" ".join(blocks),)] * bool(blocks)),
            _table(
                f"{len(widths)} elastic widths",
                ("width", "choices", "layers"),
                [(name, _sizes(one), shorten(one["members"])) for name, one in widths.items()],
            ),
            _table(
                f"{len(kernels)} elastic kernels",
                ("kernel", "choices"),
                [
                    (name, " ".join("x".join(map(str, sizes)) for sizes in one["sizes"]))
                    for name, one in kernels.items()
                ],
            ),
            _table(
                f"{sum(rigid.values()):.2%} of the parameters are rigid",
                ("reason", "share"),
                [(reason, f"{share:.2%}") for reason, share in rigid.items()],
            ),
            _table(
                "Left unchanged",
                ("reason", "times", "where"),
                [(reason, str(len(places)), _some(places)) for reason, places in refused],
            ),
            _table("Sizes of the inputs", ("input", "axis", "size"), self._axes()),
        ]
        first = f"{escape(self.model)}\n{escape(headline(data))}\n"
        return [first, *(table for table in parts if table.row_count), escape(self._summary(data))]

    def _summary(self, data: Mapping[str, Any]) -> str:
        ends = [f"{key}: {data[key]['minimal']:,} to {data[key]['maximal']:,}" for key in ("macs", "parameters")]
        ends[0] += "".join(f", {name} {size}" for name, size in self.sizes.items())
        told = [f"input {one}" for one in self.example.told]
        if self.example.chosen:
            told.append(f"whole numbers were used: with floating-point inputs the model raises {self.example.refused}")
        return "\n".join([*told, f"sub-networks: {count(data['space_size'])}", *ends, f"seconds: {data['seconds']}"])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", min_width=len(title))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("times", "share") else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _sizes(entry: dict[str, Any]) -> str:
    return " ".join(map(str, entry["choices"]))


def _by_reason(diagnostics: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Group the places by reason, most frequent reason first."""
    places: dict[str, list[str]] = {}
    for one in diagnostics:
        places.setdefault(one["reason"], []).append(one["place"])
    return sorted(places.items(), key=lambda entry: -len(entry[1]))


def _some(places: list[str], most: int = 3) -> str:
    different = list(dict.fromkeys(places))
    return " ".join(different[:most]) + (" ..." if len(different) > most else "")


def shorten(tensors: list[str]) -> str:
    """Return the layers of some tensors, grouped by parent: ``layer1.0.{conv1,bn1}``."""
    layers: dict[str, list[str]] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] or name for name in tensors):
        parent, _, leaf = path.rpartition(".")
        layers.setdefault(parent, []).append(leaf)
    told = (names[0] if len(names) == 1 else f"{{{','.join(names)}}}" for names in layers.values())
    return " ".join(f"{parent}.{names}" if parent else names for parent, names in zip(layers, told, strict=True))


def inspect_model(
    name: str,
    model: nn.Module,
    inputs: Sequence[Input],
    dynamic: Dynamic | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Inspection:
    """Find what is elastic in `model`.

    Args:
        name: the name to show.
        model: any module.
        inputs: its inputs; see `example_of` for those without a type.
        dynamic: names of dynamic axes, as `SuperNetwork.from_model` takes them.
        sizes: sizes of dynamic axes for the costs.
    """
    start = time.process_time()
    example = example_of(model, inputs)
    try:
        return _inspected(name, model, example, dynamic, sizes, start)
    except BnasError as error:
        given = f"{'an input' if len(inputs) == 1 else 'inputs'} of {' and '.join(one.text for one in inputs)}"
        told = "the first number of a shape is the batch size; to change shape, type or range, use"
        add_note(error, f"for {given}: {told} --input [NAME=]SHAPE[:TYPE[LOW..HIGH]]")
        raise


def inspect_configuration(
    configuration: Configuration, folder: Path, sizes: Mapping[str, int] | None = None
) -> Inspection:
    """Find what is elastic in the model of a configuration, with its inputs and its settings of the search space.

    Args:
        configuration: the configuration; files that it names are relative to `folder`. Weights are not loaded.
        folder: the folder of its file.
        sizes: sizes of dynamic axes that the costs are for.
    """
    model = model_of(configuration, folder, weights=False)
    start = time.process_time()
    example = example_inputs_of(configuration, model)
    dynamic, elasticity = dynamic_of(configuration, example), elasticity_of(configuration, folder)
    return _inspected(configuration.model, model, example, dynamic, sizes, start, elasticity)


def _inspected(
    name: str,
    model: nn.Module,
    example: Example,
    dynamic: Dynamic | None,
    sizes: Mapping[str, int] | None,
    start: float,
    elasticity: Elasticity | None = None,
) -> Inspection:
    """What is found in a model; `start` is when that began, in CPU seconds of the process."""
    supernet = SuperNetwork.from_model(model, example.value, elasticity, dynamic=dynamic)
    seconds = time.process_time() - start
    return Inspection(name, supernet, seconds, example, dict(sizes or {}), dynamic is not None)
