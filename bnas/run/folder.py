"""Read a run from its folder: configuration, super-network, data and sub-networks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration, place_of, with_changes
from bnas.passes import Subnet
from bnas.passes.errors import SubnetError, add_note
from bnas.runtime import SuperNetwork, measure_latency
from bnas.runtime.storage.checkpoint import SUPERNET
from bnas.runtime.storage.files import there, write_json
from bnas.search import Evaluation
from bnas.search.result import WINNERS as NAMES

from .files.ledger import Ledger
from .files.lock import kept
from .files.mark import OutputError
from .files.names import CONFIG, DELIVERED, FOUND, FRONT, SOURCE, TUNED, TUNING, WINNERS
from .files.output import Output, changed, check_way, read_json
from .files.trust import check_code
from .files.weights import read_module
from .job import Job, Splits, Watch
from .latencies import LATENCY
from .pipeline import EXPORT, OF_CONFIGURATION, free_in, within
from .results.results import Report
from .runner import elsewhere, job_of
from .steps import Steps

NUMBER = re.compile(r"[0-9]{1,9}")
"""The number of an evaluation, as the report shows it."""
FASTEST = NAMES[-1]
"""Name of a winner that is chosen by a measurement when it is requested."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Raises, from all methods that read it:
        OutputError: A file is missing; the message has the command that makes it.
        TrustError: The configuration names code that the user has not named before.
        BnasError: A file is damaged, or does not fit the others.
    """

    folder: Path
    source: Path
    """The folder to which file names in the configuration are relative."""
    changes: Sequence[str] = ()
    """Changes of settings, ``KEY=VALUE`` in order, for this command only."""
    watch: Watch = field(default_factory=Watch)
    trust: bool = False
    """Whether the user has read the code that the configuration names, so that it may be imported."""

    @classmethod
    def open(cls, folder: Path, source: Path | None = None, **settings: Any) -> RunFolder:
        """Open the folder of a run. Files that its configuration names are in the noted folder, or in `source`."""
        ledger, noted = Ledger(folder), Path()
        if source is None and ledger.exists and there(folder / SOURCE):
            noted = Path(os.fsdecode(ledger.read(SOURCE).removesuffix(b"\n")))
        return cls(folder, source or noted, **settings)

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration of the run with the changes; checks that the user named or trusts its code."""
        path, ledger = self.folder / CONFIG, Ledger(self.folder)
        if missing := ledger.missing:
            raise OutputError(
                f"{self.folder} is not the folder of a run: {missing} is missing; "
                f"to begin a run: `bnas run CONFIG --output {self.folder}`, or `bnas train` for the first step only"
            )
        data = ledger.json(CONFIG)
        if "job" in data:
            told = "`bnas.run_job` made it from Python: continue it there, with resume=True"
            raise OutputError(f"{self.folder} was not made from a configuration file; {told}")
        if "prune" in data:
            told = "its files are in subnets/; use `bnas report` to see them and `bnas bench` to measure them"
            raise OutputError(f"{self.folder} was made by `bnas prune`, so it has no super-network to search; {told}")
        data = with_changes(data, self.changes)
        if not self.changes:
            found = parse_configuration(data, str(path))
        else:
            found = parse_configuration(data, place_of(path, self.changes), self.source)
        if not self.trust:
            check_code(self.folder, found, self.changes, self.source)
        return found

    @cached_property
    def job(self) -> Job:
        """The job of this configuration. Its model has random weights, because the trained ones are in the folder."""
        return job_of(self.configuration, self.source, weights=False)

    @cached_property
    def steps(self) -> Steps:
        """The steps of the run, to be continued. Files of finished steps stay until they are written again."""
        remote = elsewhere(self.folder, self.source)
        return Steps(self.job, Output(self.folder, resumed=True), self.watch, elsewhere=remote)

    @property
    def supernet(self) -> SuperNetwork:
        """The trained super-network."""
        return self.steps.supernet

    @property
    def data(self) -> Splits:
        """The data of the training and the search."""
        return self.job.data

    def begin_search(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Prepare the folder for a search with this configuration, and write the configuration there.

        Raises:
            OutputError: There is no trained super-network; or there is a search already, and neither `resume` nor
                `overwrite` is set; or a change affects the training, or the search to be resumed.
        """
        check_way(resume=resume, overwrite=overwrite)
        config = self.configuration.model_dump(mode="json")
        if not SUPERNET.exists(self.folder / "supernet"):
            _ = self.steps.supernet  # raises, and says what makes it
        with kept(self.folder) as ledger:
            former = ledger.removable((*FOUND, *TUNED, *DELIVERED)) if overwrite else []
            if not (resume or overwrite) and any(there(self.folder / name) for name in (*FOUND, *DELIVERED)):
                raise OutputError(
                    f"{self.folder} holds a search already; use --resume to continue it or --overwrite to replace it"
                )
            if told := changed(self.folder, config, free_in(self.folder, anew=True)):
                raise OutputError(f"{told}: the training used the former; train in another folder (`bnas train`)")
            if told := changed(self.folder, config, free_in(self.folder, anew=not resume)):
                raise OutputError(f"{told}: existing evaluations become invalid; use --overwrite to replace them")
            ledger.remove(former)
            write_json(self.folder / CONFIG, config)

    def begin_tuning(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Prepare the folder for a fine-tuning with this configuration, and write the configuration there.

        Raises:
            OutputError: There is no search; or there is a fine-tuning already, and neither `resume` nor `overwrite` is
                set; or a change affects the training, the search, or the fine-tuning to be resumed.
        """
        check_way(resume=resume, overwrite=overwrite)
        config = self.configuration.model_dump(mode="json")
        if self.job.tuning is None:
            raise OutputError(
                f"{self.folder / CONFIG} has no fine_tune; give the number of epochs: --set fine_tune.epochs=8"
            )
        _ = self.steps.winners()  # raises, and says what makes them
        with kept(self.folder) as ledger:
            former = ledger.removable((*TUNED, *DELIVERED)) if overwrite else []
            if not (resume or overwrite) and there(self.folder / TUNING):
                told = "use --resume to continue it or --overwrite to replace it"
                raise OutputError(f"{self.folder} holds a fine-tuning already; {told}")
            if told := changed(self.folder, config, lambda place: within(place, (*EXPORT, *OF_CONFIGURATION.tuning))):
                raise OutputError(
                    f"{told}: training or search used the former; a fine-tuning may change only its own settings"
                )
            if told := changed(self.folder, config, lambda place: overwrite or not there(self.folder / TUNING)):
                raise OutputError(f"{told}: the existing fine-tuning becomes invalid; use --overwrite to replace it")
            ledger.remove(former)
            write_json(self.folder / CONFIG, config)

    def check_export(self) -> None:
        """Raise `OutputError` if a change affects the training or the search."""
        config = self.configuration.model_dump(mode="json")
        if told := changed(self.folder, config, lambda place: within(place, EXPORT)):
            raise OutputError(f"{told}: training or search used the former; an export may change only its own settings")

    def export(self) -> Report:
        """Export and measure the winners; the changed settings are written to the configuration in the folder."""
        with kept(self.folder) as ledger:
            self.check_export()
            report = self.steps.export()
            now = self.configuration.model_dump(mode="json")
            settings = {key: now[key] for key in ("export", "latency", "latencies")}
            write_json(self.folder / CONFIG, {**ledger.json(CONFIG), **settings})
        return report

    def subnet(self, name: str) -> Subnet:
        """Return a winner by its name, an evaluation by its number, or the sub-network in a JSON file of ``subnets/``.

        If no winner has the name "fastest", it stands for the sub-network of the Pareto front with the lowest measured
        latency, among those whose accuracy is within the run's bound (or among all, if none is).

        Raises:
            OutputError: There is no such sub-network.
            SubnetError: The sub-network does not belong to the space of this run.
        """
        _ = self.configuration
        if name in (found := self._found):
            return self._checked(found[name].subnet)
        if name == FASTEST:
            return self._fastest()
        if NUMBER.fullmatch(name) and (evaluated := self._evaluated(int(name))) is not None:
            return self._checked(evaluated)
        if not Path(name).is_file():
            names = ", ".join(dict.fromkeys([*self.steps.winners().found, FASTEST]))
            raise OutputError(
                f"{name}: there is no such sub-network or file; give {names}, an evaluation number or a JSON file"
            )
        try:
            return self._read(read_json(Path(name)))
        except SubnetError as error:
            add_note(error, f"in {name}")
            raise

    def _evaluated(self, number: int) -> Subnet | None:
        """Return the sub-network of an evaluation of the search; None if there is no such evaluation."""
        return next((one.subnet for one in Ledger(self.folder).evaluations() if one.index == number), None)

    def module(self, subnet: Subnet) -> GraphModule:
        """Return the extracted sub-network, with the BatchNorm statistics of the run or with recalibrated ones."""
        ledger = Ledger(self.folder)
        for name in self._found:
            file = f"subnets/{name}.json"
            if there(self.folder / file) and self._read(ledger.json(file)) == subnet:
                return read_module(self.supernet, subnet, ledger.check(f"subnets/{name}.safetensors"))
        return self.steps.module(subnet)

    @property
    def _found(self) -> Mapping[str, Evaluation]:
        """The winners by name; none before the search."""
        return self.steps.winners().found if there(self.folder / WINNERS) else {}

    def _fastest(self) -> Subnet:
        winners = self.steps.winners()
        front = Ledger(self.folder).json(FRONT)
        lost, by = self.job.quality.lost, self.job.chosen_by
        enough = winners.acc_delta
        good = [entry for entry in front if lost(entry["values"][by], winners.reference) <= enough] or front
        subnets = {str(place): self._read(entry["subnet"]) for place, entry in enumerate(good)}
        found = measure_latency(subnets, None, self.job.clocks[LATENCY], supernet=self.supernet, reference="0")
        return subnets[min(found, key=lambda name: found[name].ratio or 0.0)]

    def _read(self, data: Any) -> Subnet:
        return self._checked(Subnet.from_json(data))

    def _checked(self, subnet: Subnet) -> Subnet:
        self.supernet.space.check(subnet)
        return subnet
