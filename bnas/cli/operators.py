"""``bnas operators``: list what bnas knows about every operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bnas.passes import Operator


def operators(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/operators.md.")] = False,
) -> None:
    """List the operators that bnas knows: which have rules for axes and for ONNX."""
    found = facts()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif markdown:
        typer.echo(page(found))
    else:
        _print_table(found)


def facts() -> list[dict[str, Any]]:
    """Return the facts in the record of each operator, by name; operators on sizes come last."""
    from bnas.passes import OPERATORS

    found = [_facts(record) for record in OPERATORS.values()]
    return sorted(found, key=lambda row: (row["family"] == "numbers", row["family"], row["name"].lower()))


def _facts(record: Operator) -> dict[str, Any]:
    from bnas.passes.ops.registry import family_of, qualified_name

    others = [one for one in record.names() if one != record.op]
    return {
        "name": qualified_name(record.op),
        "family": family_of(record.op),
        "spellings": sorted({qualified_name(one) for one in others}),
        "layers": [kind.__name__ for kind in record.layers],
        "aten": sorted(record.aten),
        "axes": record.axes is not None,
        "zeros": record.zeros is not None,
        "shape": record.shape is not None,
        "onnx": record.onnx is not None,
        "sizes": record.number is not None,
        "examples": len(record.samples),
    }


HEADINGS = {
    "axes": "elastic",
    "zeros": "zeros",
    "onnx": "ONNX",
    "shape": "shape",
    "sizes": "sizes",
}
"""Yes-or-no facts of a record, with a word for each."""


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(found)} operators; F is torch.nn.functional")
    for heading in ("operator", "layers", *HEADINGS.values()):
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(_short(row["name"]), ", ".join(row["layers"]), *("yes" if row[fact] else "" for fact in HEADINGS))
    Console().print(table)


def _short(name: str) -> str:
    return name.replace("torch.nn.functional.", "F.")


def page(found: list[dict[str, Any]]) -> str:
    """The table as a page of the documentation, in Markdown."""
    lines = [
        "# Operators",
        "",
        f"bnas knows {len(found)} operators. If an operator is missing here, or is not *elastic*, bnas keeps its",
        "inputs and outputs unchanged and reports it. [Your own rules](passes.md) shows how to register an",
        "operator. This page is the output of `bnas operators --markdown`; a test compares them.",
        "",
        "- **elastic**: the operator has an axis rule, so the layers around it can shrink;",
        "- **zeros**: the operator maps zeros to zeros, so a later sum may run over an elastic axis;",
        "- **ONNX**: bnas writes the operator itself; for any other operator, `torch.onnx.export` exports the whole",
        "  model;",
        "- **shape**: bnas computes the shape of the result without PyTorch, which makes capture and export faster;",
        "- **sizes**: the operator also computes with sizes that depend on the inputs.",
        "",
        "`F` is `torch.nn.functional`.",
    ]
    for family in dict.fromkeys(row["family"] for row in found):
        columns = ["operator", "layers", "other spellings", "has"]
        lines += ["", f"## {family.capitalize()}", "", _row(columns), _row(["---"] * len(columns))]
        lines += [_row(_cells(row)) for row in found if row["family"] == family]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    spellings = [*row["spellings"], *(f"aten.{name}" for name in row["aten"])]
    names = [", ".join(f"`{_short(one)}`" for one in given) or "-" for given in (row["layers"], spellings)]
    return [f"`{_short(row['name'])}`", *names, ", ".join(HEADINGS[fact] for fact in HEADINGS if row[fact]) or "-"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
