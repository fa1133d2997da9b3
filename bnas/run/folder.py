"""What a run left in its folder, read back: its configuration, super-network, data and sub-networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from torch.fx import GraphModule

from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration, place_of, with_changes
from bnas.passes import Subnet
from bnas.passes.errors import SubnetError, add_note
from bnas.runtime import SuperNetwork, measure_latency
from bnas.runtime.storage.checkpoint import SUPERNET, check_state
from bnas.runtime.storage.files import write_json
from bnas.search.result import WINNERS

from .delivery import Report
from .job import Job, Splits, Watch
from .output import CONFIG, Output, OutputError, changed, read_json, remove
from .pipeline import DELIVERED, EXPORT, FOUND, free_in, within
from .runner import SOURCE, job_of
from .steps import Steps


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Raises, from all that reads it:
        OutputError: something is missing; says which command makes it.
        BnasError: something is damaged, or does not fit.
    """

    folder: Path
    source: Path
    """The folder that the names of files in its configuration are relative to."""
    changes: Sequence[str] = ()
    """``KEY=VALUE``, in order, for this time."""
    watch: Watch = field(default_factory=Watch)

    @classmethod
    def open(cls, folder: Path, source: Path | None = None, **settings: Any) -> RunFolder:
        """The folder of a run, whose configuration's files are where the run noted, or in `source`."""
        note = folder / SOURCE
        noted = Path(os.fsdecode(note.read_bytes().removesuffix(b"\n"))) if note.is_file() else Path()
        return cls(folder, source or noted, **settings)

    @cached_property
    def configuration(self) -> Configuration:
        """What was run, with the changes."""
        path = self.folder / CONFIG
        if not path.is_file():
            raise OutputError(
                f"{self.folder} holds no run of bnas: {CONFIG} is missing; "
                f"`bnas train CONFIG --output {self.folder}` makes one, and `bnas run` does all of it"
            )
        data = read_json(path)
        if "job" in data:
            told = "`bnas.run_job` made it from Python: go on with it there, with resume=True"
            raise OutputError(f"{self.folder} has no configuration of its model and data; {told}")
        data = with_changes(data, self.changes)
        if not self.changes:
            return parse_configuration(data, str(path))
        return parse_configuration(data, place_of(path, self.changes), self.source)

    @cached_property
    def job(self) -> Job:
        """The job of this configuration; its model has no weights: those are in the folder."""
        return job_of(self.configuration, self.source, weights=False)

    @cached_property
    def steps(self) -> Steps:
        """The steps of the run, to go on with; files of steps that were done stay until they are written anew."""
        return Steps(self.job, Output(self.folder, resumed=True), self.watch)

    @property
    def supernet(self) -> SuperNetwork:
        """The trained super-network."""
        return self.steps.supernet

    @property
    def data(self) -> Splits:
        """The data that it was trained and searched on."""
        return self.job.data

    def begin_search(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready for a search by this configuration, which is written there.

        Raises:
            OutputError: nothing was trained; or there is a search already, and neither is said; or a change is of
                what the training, or the search to be resumed, has settled.
        """
        if resume and overwrite:
            raise OutputError("resume and overwrite exclude each other")
        config = self.configuration.model_dump(mode="json")
        if not SUPERNET.exists(self.folder / "supernet"):
            _ = self.steps.supernet  # raises, and says what makes it
        there = [path for name in (*FOUND, *DELIVERED) if (path := self.folder / name).exists()]
        if there and not (resume or overwrite):
            raise OutputError(
                f"{self.folder} holds a search already; say --resume to go on with it or --overwrite to replace it"
            )
        if told := changed(self.folder, config, free_in(self.folder, anew=True)):
            raise OutputError(f"{told}: that is what was trained; train anew in another folder with `bnas train`")
        if told := changed(self.folder, config, free_in(self.folder, anew=not resume)):
            raise OutputError(f"{told}: the evaluations that there are do not hold then; --overwrite replaces them")
        for path in there if overwrite else ():
            remove(path)
        write_json(self.folder / CONFIG, config)

    def check_export(self) -> None:
        """Raise `OutputError` where a change is of what was trained or searched."""
        config = self.configuration.model_dump(mode="json")
        if told := changed(self.folder, config, lambda place: within(place, EXPORT)):
            raise OutputError(f"{told}: that is what was trained or searched; an export has settings of its own")

    def export(self) -> Report:
        """Export and measure what the search found, by settings that the configuration in the folder then has."""
        self.check_export()
        report = self.steps.export()
        now = self.configuration.model_dump(mode="json")
        kept = {key: now[key] for key in ("export", "latency")}
        write_json(self.folder / CONFIG, {**read_json(self.folder / CONFIG), **kept})
        return report

    def subnet(self, name: str) -> Subnet:
        """One of the `WINNERS`, or the sub-network in a JSON file such as those in ``subnets/``.

        "fastest" is the one of the Pareto front with the least measured latency whose accuracy is within the run's
        bound, or of all of the front where none is.

        Raises:
            OutputError: there is no such sub-network.
            SubnetError: it is not of the space of this run.
        """
        _ = self.configuration
        if name == "fastest":
            return self._fastest()
        if name in WINNERS:
            return self._checked(self.steps.winners().found[name].subnet)
        if not Path(name).is_file():
            raise OutputError(f"{name}: there is no such file; give {', '.join(WINNERS)} or the file of a sub-network")
        try:
            return self._read(read_json(Path(name)))
        except SubnetError as error:
            add_note(error, f"in {name}")
            raise

    def module(self, subnet: Subnet) -> GraphModule:
        """The extracted sub-network with the statistics that the run gave it, or with recalibrated ones."""
        for name in WINNERS:
            file = self.folder / "subnets" / f"{name}.json"
            if file.is_file() and self._read(read_json(file)) == subnet:
                return self._stored(subnet, file.with_suffix(".safetensors"))
        return self.steps.evaluator.prepare(subnet)

    def _stored(self, subnet: Subnet, file: Path) -> GraphModule:
        module = self.supernet.extract(subnet)
        try:
            state = safetensors.torch.load_file(file)
        except Exception as error:
            raise OutputError(f"{file}: cannot be read: {error}") from error
        check_state(module.state_dict(), state, str(file))
        module.load_state_dict(state)
        return module

    def _fastest(self) -> Subnet:
        winners = self.steps.winners()
        front = read_json(self.folder / "pareto.json")
        enough = winners.reference - winners.acc_delta
        good = [entry for entry in front if entry["values"]["accuracy"] >= enough] or front
        subnets = {str(place): self._read(entry["subnet"]) for place, entry in enumerate(good)}
        found = measure_latency(subnets, None, self.job.latency, supernet=self.supernet, reference="0")
        return subnets[min(found, key=lambda name: found[name].ratio or 0.0)]

    def _read(self, data: Any) -> Subnet:
        known = {key: value for key, value in data.items() if key != "costs"} if isinstance(data, dict) else data
        return self._checked(Subnet.from_json(known))

    def _checked(self, subnet: Subnet) -> Subnet:
        self.supernet.space.check(subnet)
        return subnet
