"""The main job: bootstrap, train, search, export, measure; every phase leaves whole files that a resumed run reuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn
from torch.fx import GraphModule

from bnas.output import Output
from bnas.passes import Elasticity, Subnet
from bnas.passes.slot import Copies
from bnas.report import Report, Row
from bnas.runtime import (
    EpochRecord,
    Evaluator,
    LatencyModel,
    Progress,
    Recipe,
    Stage,
    SuperNetwork,
    Trainer,
    accuracy,
    export_onnx,
    first_samples,
    fold,
    machine,
    measure_latency,
    origin,
)
from bnas.runtime.evaluation import Loader
from bnas.runtime.files import write_bytes, write_json
from bnas.runtime.stage import STAGES
from bnas.search import Constraint, Evaluation, Objective, Searcher, SearchError, SearchResult


@dataclass(frozen=True)
class Splits:
    """The data of a job."""

    train: Loader
    """Batches through the training transform: for training and for BatchNorm statistics."""
    validation: Loader
    """Held out from training: what the search measures on."""
    test: Loader
    """Seen by neither training nor search: what is reported."""
    record: Mapping[str, Any] | None = None
    """What the data are and what was held out, as plain data; a run keeps it as ``data.json``."""


@dataclass(frozen=True)
class Job:
    """All that a run needs; see `run_job`."""

    model: nn.Module
    """The pre-trained model; training changes its parameters in place."""
    data: Splits
    example_inputs: Any
    """A tensor, or a tuple or dict of inputs, with the batch as axis 0."""
    elasticity: Elasticity = field(default_factory=Elasticity)
    stages: Sequence[Stage] = STAGES
    recipe: Recipe = field(default_factory=Recipe)
    """How the stages are trained."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of `bnas.Trainer`."""
    num_evals: int = 150
    population: int = 20
    calibration_samples: int = 2000
    """Training samples for the BatchNorm statistics of each sub-network."""
    acc_delta: float = 0.01
    """How much accuracy a winner may lose against the original, as a fraction."""
    seed: int = 0
    search: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of `bnas.Searcher`, such as ``constraints``."""
    objectives: Sequence[Objective] = (Objective("accuracy", "max"), Objective("macs", "min"))
    """What is searched for: accuracy, which winners are chosen by, and any others. Where the search or a constraint
    asks for "latency", a latency model is fitted to the trained super-network and kept as ``latency.json``."""
    reference: float | Literal["original", "maximal"] = "original"
    """What winners are held against: an accuracy as a fraction, or that of the original or the trained maximal network.

    An original that was trained on the validation data too does too well there: then say "maximal".
    """

    def __post_init__(self) -> None:
        if "accuracy" not in (names := [one.name for one in self.objectives]):
            raise SearchError(f"objectives {names}: 'accuracy' must be one of them, winners are chosen by it")


@dataclass(frozen=True)
class Watch:
    """What is told while a job runs; each may be replaced."""

    phase: Callable[[str], None] = lambda _: None
    on_supernet: Callable[[SuperNetwork], None] = lambda _: None
    """Gets the super-network when it is made or loaded, with what the passes found and refused."""
    on_step: Callable[[Progress], None] = lambda _: None
    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    on_evaluation: Callable[[Evaluation, int], None] = lambda _, __: None
    """Gets the evaluation and how many there will be."""


def run_job(job: Job, output: Output, watch: Watch | None = None) -> Report:
    """Run all phases of `job` and write everything a later step needs to `output`.

    Files: ``data.json`` where the data have a record, ``training/``, ``supernet/``, ``latency.json`` if asked for,
    ``evaluations.jsonl`` and ``.csv``, ``pareto.json``, ``subnets/NAME.{json,safetensors,onnx}``, ``report.json``. A
    resumed run goes on with the training where it was left, and reuses every evaluation. What is searched is what the
    last stage trained.

    Raises:
        BnasError: what is wrong, with the place and the remedy; files that were written are whole.
    """
    watch = watch or Watch()
    torch.manual_seed(job.seed)
    watch.phase("finding what is elastic")
    original = copy.deepcopy(job.model).eval()
    supernet = _trained(job, output, watch)
    if job.data.record is not None:
        write_json(output.path("data.json"), dict(job.data.record))
    calibration = first_samples(job.data.train, job.calibration_samples)
    evaluator = Evaluator(supernet, calibration, list(job.data.validation))
    watch.phase("searching")
    reference = _reference(job, original, evaluator)
    result = _search(job, output, evaluator, watch)
    write_json(output.path("pareto.json"), [_entry(e) for e in result.pareto()])
    watch.phase("exporting and measuring")
    plain = supernet.skeleton.build(supernet.space.maximal(), Copies(), original).eval()
    names, missed = winners(result, reference, job.acc_delta, supernet.costs(supernet.space.maximal())["macs"])
    rows = _measured(job, output, supernet, evaluator, plain, names)
    report = Report(rows, reference, job.acc_delta, len(result.evaluations), missed, machine())
    write_json(output.path("report.json"), report.to_json())
    return report


def _reference(job: Job, original: nn.Module, evaluator: Evaluator) -> float:
    if not isinstance(job.reference, str):
        return job.reference
    if job.reference == "maximal":
        original = evaluator.prepare(evaluator.supernet.space.maximal())
    return accuracy(original, evaluator.validation)


def _trained(job: Job, output: Output, watch: Watch) -> SuperNetwork:
    """The trained super-network: from disk where an earlier run got so far."""
    folder = output.path("supernet")
    if output.resumed and (folder / "supernet.json").is_file():
        supernet = SuperNetwork.load(folder, job.model)
        watch.on_supernet(supernet)
        return supernet
    supernet = SuperNetwork.from_model(job.model, job.example_inputs, job.elasticity)
    watch.on_supernet(supernet)
    watch.phase("training")
    told: dict[str, Any] = {"on_step": watch.on_step, "on_epoch": watch.on_epoch}
    trainer = Trainer(supernet, job.stages, job.recipe, directory=output.path("training"), **told, **job.training)
    trainer.fit(job.data.train, job.data.validation, resume=output.resumed)
    supernet.eval()
    supernet.save(folder)
    return supernet


def _search(job: Job, output: Output, evaluator: Evaluator, watch: Watch) -> SearchResult:
    space = job.stages[-1].space(evaluator.supernet.space)
    total = min(job.num_evals, space.size)
    searcher = Searcher(
        evaluator.supernet,
        evaluator,
        job.objectives,
        population=job.population,
        num_evals=job.num_evals,
        seed=job.seed,
        space=space,
        log=output.path("evaluations.jsonl"),
        on_evaluation=lambda evaluation: watch.on_evaluation(evaluation, total),
        **{"latency": _latency(job, output, evaluator.supernet), **job.search},
    )
    result = searcher.run()
    result.write_csv(output.path("evaluations.csv"))
    return result


def _latency(job: Job, output: Output, supernet: SuperNetwork) -> LatencyModel | None:
    """The latency model where one is asked for: from disk in a resumed run, whose log has its predictions."""
    bounds = (Constraint.parse(c) if isinstance(c, str) else c for c in job.search.get("constraints", ()))
    asked = {*(one.name for one in job.objectives if one.measure is None), *(bound.name for bound in bounds)}
    if "latency" not in asked or "latency" in job.search:
        return None
    path = output.path("latency.json")
    if output.resumed and path.is_file():
        return LatencyModel.load(path, supernet)
    model = LatencyModel.fit(supernet, seed=job.seed)
    model.save(path)
    return model


def winners(result: SearchResult, reference: float, delta: float, full: int) -> tuple[dict[str, Evaluation], bool]:
    """The sub-networks to hand back, by name, and whether none is within `delta` of the reference.

    "best" is the most accurate one with fewer MACs than the original, "smallest" the one with the fewest MACs whose
    accuracy is within `delta`. Where none is, both are the most accurate one of fewer MACs.
    """
    smaller = [e for e in result.feasible if e.values["macs"] < full] or list(result.feasible)
    best = max(smaller, key=lambda e: (e.values["accuracy"], -e.values["macs"]))
    smallest = result.best(delta, reference=reference)
    missed = smallest is None or best.values["accuracy"] < reference - delta
    return {"best": best, "smallest": best if smallest is None else smallest}, missed


def _measured(
    job: Job,
    output: Output,
    supernet: SuperNetwork,
    evaluator: Evaluator,
    plain: GraphModule,
    names: Mapping[str, Evaluation],
) -> tuple[Row, ...]:
    """Export the original and the winners, check them against PyTorch, time them together."""
    modules = {"original": plain, **{name: evaluator.prepare(e.subnet) for name, e in names.items()}}
    subnets = {"original": supernet.space.maximal(), **{name: e.subnet for name, e in names.items()}}
    example, test = _one_sample(supernet), list(job.data.test)
    for name, module in modules.items():
        _write_subnet(output, name, module, subnets[name], supernet, example)
    files = {name: output.path(f"subnets/{name}.onnx") for name in modules}
    feeds = dict(zip(_names(plain), [t.numpy() for t in example], strict=True))
    latencies = measure_latency(files, feeds, reference="original", seed=job.seed)
    return tuple(
        Row(name, accuracy(fold(module), test), supernet.costs(subnets[name]), latencies[name], subnets[name])
        for name, module in modules.items()
    )


def _write_subnet(
    output: Output, name: str, module: GraphModule, subnet: Subnet, supernet: SuperNetwork, example: Any
) -> None:
    write_json(output.path(f"subnets/{name}.json"), {**subnet.to_json(), "costs": supernet.costs(subnet)})
    tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    write_bytes(output.path(f"subnets/{name}.safetensors"), safetensors.torch.save(tensors))
    export_onnx(module, output.path(f"subnets/{name}.onnx"), example, metadata=origin(supernet, subnet))


def _one_sample(supernet: SuperNetwork) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[:1] for tensor in supernet.example())


def _names(module: GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def _entry(evaluation: Evaluation) -> dict[str, Any]:
    return {"values": dict(evaluation.values), "subnet": evaluation.subnet.to_json()}
