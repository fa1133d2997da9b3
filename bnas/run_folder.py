"""What a finished run left in its folder, read back: the super-network, its data and its sub-networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from torch.fx import GraphModule

from bnas.configuration import Configuration
from bnas.configuration_file import parse_configuration
from bnas.output import CONFIG, OutputError
from bnas.passes import Subnet
from bnas.pipeline import Splits
from bnas.runner import data_of, model_of
from bnas.runtime import Evaluator, SuperNetwork, first_samples, measure_latency
from bnas.runtime.checkpoint import check_state

NAMES = ("best", "smallest", "fastest")
"""Sub-networks of a run by name; anything else is a file."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    folder: Path
    source: Path
    """The folder that the names of files in its configuration are relative to."""

    @cached_property
    def configuration(self) -> Configuration:
        """What was run."""
        return parse_configuration(self._json(CONFIG), str(self.folder / CONFIG))

    @cached_property
    def supernet(self) -> SuperNetwork:
        """The trained super-network."""
        model = model_of(self.configuration, self.source, weights=False)
        return SuperNetwork.load(self.folder / "supernet", model).eval()

    @cached_property
    def data(self) -> Splits:
        """The data that it was trained and searched on."""
        return data_of(self.configuration, self.source)

    def subnet(self, name: str) -> Subnet:
        """One of `NAMES`, or the sub-network in a JSON file such as those in ``subnets/``.

        "fastest" is the one of the Pareto front with the least measured latency whose accuracy is within the run's
        bound, or of all of the front where none is.

        Raises:
            OutputError: there is no such sub-network.
            SubnetError: it is not of the space of this run.
        """
        if name == "fastest":
            return self._fastest()
        self._json("report.json")  # written last: a run without it is not finished
        file = self.folder / "subnets" / f"{name}.json" if name in NAMES else Path(name)
        if not file.is_file():
            raise OutputError(f"{file}: there is no such file; give {', '.join(NAMES)} or the file of a sub-network")
        return self._read(_load(file))

    def module(self, subnet: Subnet) -> GraphModule:
        """The extracted sub-network with the statistics that the run gave it, or with recalibrated ones."""
        for name in ("best", "smallest"):
            file = self.folder / "subnets" / f"{name}.json"
            if file.is_file() and self._read(_load(file)) == subnet:
                return self._stored(subnet, file.with_suffix(".safetensors"))
        count = self.configuration.bootstrapNAS.search.batchnorm_adaptation.num_bn_adaptation_samples
        return Evaluator(self.supernet, first_samples(self.data.train, count), ()).prepare(subnet)

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
        report, front = self._json("report.json"), self._json("pareto.json")
        enough = report["reference"] - report["acc_delta"]
        good = [entry for entry in front if entry["values"]["accuracy"] >= enough] or front
        subnets = {str(place): self._read(entry["subnet"]) for place, entry in enumerate(good)}
        found = measure_latency(subnets, supernet=self.supernet, reference="0")
        return subnets[min(found, key=lambda name: found[name].ratio or 0.0)]

    def _read(self, data: Any) -> Subnet:
        known = {key: value for key, value in data.items() if key != "costs"} if isinstance(data, dict) else data
        subnet = Subnet.from_json(known)
        self.supernet.space.check(subnet)
        return subnet

    def _json(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            raise OutputError(f"{self.folder} holds no finished run of bnas: {name} is missing")
        return _load(path)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is not a JSON file: {error}") from error
