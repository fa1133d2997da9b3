"""The record of a fine-tuning in the run folder: its winners, their weights and accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.run.files.mark import OutputError, damaged, unknown_format
from bnas.run.files.names import TUNING
from bnas.run.files.output import Output
from bnas.run.files.weights import read_module
from bnas.run.results.commands import step_command
from bnas.runtime import SuperNetwork
from bnas.runtime.storage.files import there, write_json

from .winners import Chosen, Winners, check_name, read_winners

FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned sub-network, with its accuracy (or the job's metric) on the validation data."""

    name: str
    """Name of the winner; if it has several, the first one."""
    searched: Subnet
    """The choice of the search."""
    before: float
    """Accuracy before any fine-tuning, with the weights of the super-network."""
    after: float | None = None
    """Accuracy after the fine-tuning; None until the whole fine-tuning is finished."""
    chosen: Chosen | None = None
    """The choice in the weights that larger winners trained; None before it, and if there is none."""

    @property
    def subnet(self) -> Subnet:
        """The sub-network that is fine-tuned."""
        return self.searched if self.chosen is None else self.chosen.evaluation.subnet

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_json` reads it."""
        numbers = {"before": self.before, "after": self.after}
        chosen = None if self.chosen is None else self.chosen.to_json()
        return {
            "name": self.name,
            "subnet": self.searched.to_json(),
            "chosen": chosen,
            "validation_accuracy": numbers,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], place: str) -> Tuned:
        """Return the winner that `to_json` described in the file `place`."""
        numbers, chosen = data["validation_accuracy"], data.get("chosen")
        found = None if chosen is None else Chosen.from_json(chosen)
        return cls(check_name(data["name"], place), Subnet.from_json(data["subnet"]), **numbers, chosen=found)


@dataclass(frozen=True)
class Record:
    """The file ``tuning.json``."""

    settings: Mapping[str, Any]
    winners: tuple[Tuned, ...]

    @property
    def finished(self) -> bool:
        """Whether all winners are fine-tuned."""
        return all(one.after is not None for one in self.winners)

    def same(self, other: Record) -> bool:
        """Whether both records have the same winners of a search and settings, so that one can continue the other."""
        names = [[(one.name, one.searched) for one in record.winners] for record in (self, other)]
        return self.settings == other.settings and names[0] == names[1]

    def updated(self, one: Tuned) -> Record:
        """Return the record with a new state of the winner of this name."""
        return replace(self, winners=tuple(one if other.name == one.name else other for other in self.winners))

    def applied(self, winners: Winners) -> Winners:
        """Return the winners of a search with those that this fine-tuning chose again, if it belongs to them."""
        searched = {name: one.subnet for name, one in winners.found.items()}
        ours = [one for one in self.winners if searched.get(one.name) == one.searched]
        return winners.replaced({one.name: one.chosen for one in ours if one.chosen is not None})

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        winners = [one.to_json() for one in self.winners]
        write_json(path, {"format": FORMAT, "settings": dict(self.settings), "winners": winners})


def weights_of(name: str) -> str:
    """Return the file name, in the run folder, of the weights of a fine-tuned winner."""
    return f"tuning/{name}.safetensors"


def read_record(output: Output) -> Record | None:
    """Read ``tuning.json``; None if it does not exist.

    Raises:
        OutputError: The file is damaged, or of another format.
    """
    path = output.folder / TUNING
    if not there(path):
        return None
    data = output.ledger.json(TUNING)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise unknown_format(path, FORMAT)
    try:
        return Record(data["settings"], tuple(Tuned.from_json(one, str(path)) for one in data["winners"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error


def tuned_modules(output: Output, supernet: SuperNetwork, winners: Winners) -> dict[Subnet, GraphModule]:
    """Return the winners after a finished fine-tuning, in evaluation mode.

    Raises:
        OutputError: The folder has no finished fine-tuning of these winners; the message has the command for it.
    """
    record = read_record(output)
    subnets = {one.subnet for one in winners.found.values()}
    if record is None or not record.finished or {one.subnet for one in record.winners} != subnets:
        told = step_command("tune", output.folder, resume=record is not None)
        raise OutputError(f"{output.folder} holds no finished fine-tuning of its winners; run it with `{told}`")
    files = {one.subnet: output.ledger.check(weights_of(one.name)) for one in record.winners}
    return {subnet: read_module(supernet, subnet, file).eval() for subnet, file in files.items()}


def in_order(winners: Winners, supernet: SuperNetwork) -> dict[Subnet, str]:
    """Return the sub-networks to fine-tune by name, largest first; one with several names has its first name."""
    named = {one.subnet: name for name, one in reversed(tuple(winners.found.items()))}
    return {subnet: named[subnet] for subnet in sorted(named, key=lambda one: -supernet.costs(one)["macs"])}


def winners_after(output: Output) -> Winners:
    """Return the winners of the search in a run folder, with those that its fine-tuning chose again.

    Raises:
        OutputError: As `bnas.run.winners.winners.read_winners`.
    """
    winners, record = read_winners(output), read_record(output)
    return winners if record is None else record.applied(winners)
