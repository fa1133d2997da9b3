"""Keys of a configuration beside those of BootstrapNAS's section: optimizer, model, latency, export, population."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import bnas
from bnas.config import loggers
from bnas.config import settings as checks
from bnas.config.bootstrapnas import OptimizerSection
from bnas.config.configuration import Configuration, ExportSection
from bnas.config.file import load_config, parse_configuration
from bnas.config.schema import json_schema
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.config.settings import recipe_of, search_of
from bnas.data.factories import SourceError
from bnas.passes.faults import fields_of
from bnas.run import runner
from bnas.run.job import Job
from bnas.run.runner import job_of
from bnas.runtime import Int8, LatencySettings, Recipe, Stage, SuperNetwork, Trainer, TrainingError
from bnas.runtime.train.optimizers import optimizer_of

BASE = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}
PUBLISHED = sorted((Path(__file__).parents[2] / "support" / "published").glob("*.json"))
SEARCH = "bootstrapNAS.search"


def recipe(**optimizer: Any) -> Recipe:
    return recipe_of(parse_configuration({**BASE, "optimizer": optimizer}, "file"))


def faults(folder: Path, *changes: str, **keys: Any) -> tuple[str, ...]:
    (folder / "c.json").write_text(json.dumps({**BASE, **keys}))
    with pytest.raises(ConfigurationError) as caught:
        load_config(folder / "c.json", changes)
    return caught.value.faults


@pytest.mark.parametrize(
    ("given", "kind", "settings"),
    [
        ({}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
        ({"type": "SGD", "momentum": 0}, torch.optim.SGD, {"momentum": 0, "nesterov": False}),
        ({"type": "sgd", "momentum": 0.5, "nesterov": False}, torch.optim.SGD, {"momentum": 0.5, "nesterov": False}),
        ({"type": "Adam"}, torch.optim.Adam, {"betas": (0.9, 0.999), "weight_decay": 1e-4}),
        ({"type": "AdamW", "betas": [0.8, 0.9]}, torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        ({"type": "adamw", "weight_decay": 0.05}, torch.optim.AdamW, {"weight_decay": 0.05}),
        ({"type": "RMSprop", "momentum": 0.3}, torch.optim.RMSprop, {"momentum": 0.3}),
    ],
)
def test_an_optimizer_is_that_of_torch(given: dict[str, Any], kind: type, settings: dict[str, Any]) -> None:
    model = nn.Linear(2, 2)
    jsonschema.validate({**BASE, "optimizer": given}, json_schema())
    own = dict(model.named_parameters())
    made = optimizer_of(recipe(**given, base_lr=0.25), list(own.values()), own)
    assert type(made) is kind
    assert [len(group["params"]) for group in made.param_groups] == [2]
    group = made.param_groups[0]
    assert {key: group[key] for key in settings} == settings
    assert group["lr"] == 0.25


def test_a_recipe_has_the_settings_of_sgd() -> None:
    for given, expected in (
        ({"momentum": 0.5, "base_lr": 0.2}, Recipe(momentum=0.5, learning_rate=0.2)),
        ({"momentum": 0.0}, Recipe(momentum=0.0)),
        ({"label_smoothing": 0.1, "weight_decay": 0.0}, Recipe(label_smoothing=0.1, weight_decay=0.0)),
    ):
        assert recipe(**given) == expected


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "adamw", "momentum": 0.9}, "momentum is only for sgd and rmsprop; with adamw remove it or set it"),
        ({"type": "adam", "nesterov": False}, "nesterov is only for sgd; with adam remove it"),
        ({"betas": [0.9, 0.99]}, "betas is only for adam and adamw; with sgd remove it"),
        ({"momentum": 0, "nesterov": True}, "nesterov needs a momentum above 0"),
    ],
)
def test_settings_of_other_optimizers_are_told(optimizer: dict[str, Any], message: str, tmp_path: Path) -> None:
    (told,) = faults(tmp_path, optimizer=optimizer)
    assert re.match(rf"optimizer\.\w+ is .*: {message}", told)
    with pytest.raises(TrainingError, match=message):
        Recipe(**{"optimizer" if key == "type" else key: value for key, value in optimizer.items()})


def test_a_published_file_takes_another_optimizer_from_the_command_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)
        with pytest.raises(ConfigurationError, match=r"optimizer\.momentum is 0\.9: .* remove it or set it to null"):
            load_config(PUBLISHED[0], ["optimizer.type=adamw"])
        remedied = ["optimizer.type=adamw", "optimizer.momentum=null", "optimizer.nesterov=null"]
        assert load_config(PUBLISHED[0], remedied).optimizer.type == "adamw"


def adamw_run(folder: Path, stop: int | None) -> SuperNetwork:
    """A training with AdamW in two groups, with weights that are reordered in the middle; interrupted after a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    supernet = SuperNetwork.from_model(model, torch.zeros(1, 1, 6, 6))
    batches = [(torch.randn(8, 1, 6, 6), torch.arange(8) % 3) for _ in range(3)]

    def on_step(progress: Any) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    trainer = Trainer(
        supernet,
        [Stage(), Stage(reorg_weights=True)],
        Recipe(num_bn_adaptation_samples=8, memory_format="contiguous", optimizer="adamw", no_decay_keys="1.#bias"),
        directory=folder,
        checkpoint_every=1,
        on_step=on_step,
    )
    if stop is None:
        trainer.fit(batches, resume=True)
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(batches)
    return supernet


def test_adamw_is_resumed_to_the_bit(tmp_path: Path) -> None:
    whole = adamw_run(tmp_path / "whole", None).model.state_dict()
    adamw_run(tmp_path / "parts", 4)
    resumed = adamw_run(tmp_path / "parts", None).model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    other = nn.Conv2d(1, 16, 3).weight
    assert not torch.equal(whole["0.weight"], other)


def job(monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Job:
    monkeypatch.setattr(runner, "load_model", lambda *_, **__: nn.Identity())
    monkeypatch.setattr(runner, "load_data", lambda *_, **__: bnas.Splits([], [], []))
    jsonschema.validate({**BASE, **keys}, json_schema())
    return job_of(parse_configuration({**BASE, **keys}, "file"), Path())


def test_latency_and_export_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = job(monkeypatch)
    assert plain.int8 is not None
    assert plain.int8 == Int8()
    assert job(monkeypatch, export={"int8": False}).int8 is None
    assert plain.latency == LatencySettings()
    latency = {"batch": 4, "threads": 2, "runs": 9, "subnets": 7}
    export = {"int8": True, "calibration_samples": 32, "exclude": "head", "method": "entropy", "reduce_range": True}
    given = job(monkeypatch, latency=latency, export=export, tensorboard=True)
    assert given.latency == LatencySettings(batch=4, threads=2, runs=9, subnets=7)
    assert given.tensorboard
    quantised = given.int8
    assert quantised is not None
    assert (quantised.samples, quantised.exclude, quantised.method) == (32, ("head",), "entropy")
    assert (quantised.reduce_range, quantised.per_channel) == (True, True)


def test_every_key_of_the_new_sections_is_read() -> None:
    assert {"batch", "threads", "runs", "provider", "subnets", "sizes"} < set(fields_of(LatencySettings))
    assert {*fields_of(Int8), "calibration_samples"} - {"samples"} == set(ExportSection.model_fields) - {"int8"}
    assert set(vars(Int8([]))) - set(fields_of(Int8)) == {"calibration", "validation", "metric"}


def test_checkpoints_may_be_more_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "checkpoint_every" not in job(monkeypatch).training
    assert job(monkeypatch, bootstrapNAS={"training": {"checkpoint_every": 50}}).training["checkpoint_every"] == 50


def test_model_options_are_arguments_of_the_factory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, bnas\ndef net(num_classes, width=1): return torch.nn.Linear(width, num_classes)\n"
        "def data(): return bnas.Splits([], [], [])\n"
    )
    keys = {**BASE, "model": "mine.py:net", "data": "mine.py:data", "num_classes": 3}
    made = job_of(parse_configuration({**keys, "model_options": {"width": 7}}, "file"), tmp_path)
    assert isinstance(made.model, nn.Linear)
    assert (made.model.in_features, made.model.out_features) == (7, 3)
    with pytest.raises(SourceError, match="unexpected keyword argument 'wdth'; it accepts num_classes, width"):
        job_of(parse_configuration({**keys, "model_options": {"wdth": 7}}, "file"), tmp_path)
    told = faults(tmp_path, num_classes=3, model_options={"num_classes": 4})
    assert told == ("model_options: num_classes is also a key of the first level; give only one of them",)


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    keys = {**BASE, "model": "bnas.data.digits:DigitNet", "data": None, "dataset": "digits"}
    keys["input_info"] = {"sample_size": [1, 1, 8, 8]}
    first, again = (job_of(parse_configuration(keys, "file"), tmp_path).model.state_dict() for _ in range(2))
    other = parse_configuration({**keys, "bootstrapNAS": {"search": {"seed": 1}}}, "file")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(job_of(other, tmp_path).model.state_dict()["head.weight"], first["head.weight"])


@pytest.mark.parametrize(
    ("search", "population"),
    [({}, 40), ({"num_evals": 12}, 12), ({"num_evals": 60}, 40), ({"num_evals": 40, "population": 30}, 30)],
)
def test_a_population_that_is_not_given_fits(
    search: dict[str, int], population: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job(monkeypatch, bootstrapNAS={"search": search}).search.population == population


def test_a_population_that_is_too_large_is_told(tmp_path: Path) -> None:
    told = faults(tmp_path, bootstrapNAS={"search": {"num_evals": 40, "population": 50}})
    remedy = "lower the population or raise num_evals"
    assert told == (f"{SEARCH}.num_evals is 40: smaller than the population of 50; {remedy}",)
    changes = (f"{SEARCH}.num_evals=40", f"{SEARCH}.population=50")
    assert faults(tmp_path, *changes) == told
    assert "num_evals is 3: must be greater than or equal to 4" in faults(tmp_path, f"{SEARCH}.num_evals=3")[0]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_number_of_evaluations_of_a_published_file_may_be_set(path: Path) -> None:
    with pytest.warns(ConfigurationWarning) as told:
        found = load_config(path, [f"{SEARCH}.num_evals=40"])
    assert (search_of(found).num_evals, search_of(found).population) == (40, 40)
    remark = f"{SEARCH}.population 50 is ignored: it is larger than num_evals=40 of --set"
    assert any(str(one.message).startswith(remark) for one in told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)
        given = load_config(path, [f"{SEARCH}.num_evals=40", f"{SEARCH}.population=10"]).bootstrapNAS.search
        assert given.population == 10
        assert load_config(path, [f"{SEARCH}.num_evals=60"]).bootstrapNAS.search.population == 50


def test_numbers_that_a_budget_decides_are_told(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**BASE, "budget": "5m", "stages": [{"epochs": 1}]}))
    changes = ["search.num_evals=20", "stages[0].epochs=2", "fine_tune.epochs=3"]
    with pytest.warns(ConfigurationWarning) as told:
        load_config(path, changes)
    assert [str(one.message).split(" of --set has no effect: the budget of 5m decides it")[0] for one in told] == [
        change.partition("=")[0] for change in changes
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(path, ["budget=null", *changes]).search.num_evals == 20
        load_config(path, ["search.seed=3"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"latency": {"provider": "CPUExecutionProvidr"}}, "latency.provider: .*did you mean 'CPUExecutionProvider'"),
        ({"latency": {"subnets": 5}}, "latency.subnets is 5: must be greater than or equal to 6"),
        ({"latency": {"bacth": 4}}, "latency.bacth is not a key of bnas; did you mean 'batch'"),
        ({"export": {"method": "max"}}, "export.method is 'max': must be 'minmax', 'entropy' or 'percentile'"),
        ({"device": "gpu"}, "device: 'gpu' is not a compute device"),
        ({"optimizer": {"type": "lion"}}, "optimizer.type is 'lion': must be 'sgd', 'adam', 'adamw' or 'rmsprop'"),
    ],
)
def test_wrong_keys_and_values_are_named(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    told = faults(tmp_path, **keys)
    assert len(told) == 1
    assert re.search(message, told[0])


@pytest.mark.parametrize(
    ("keys", "package", "message"),
    [
        ({"tensorboard": True}, "tensorboard", r"tensorboard: TensorBoard is not installed: pip install 'bnas\[tens"),
        ({"mlflow": True}, "mlflow", r"mlflow: MLflow is not installed: pip install 'bnas\[mlflow\]'"),
        ({"wandb": {}}, "wandb", r"wandb: Weights & Biases is not installed: pip install 'bnas\[wandb\]'"),
        (
            {"bootstrapNAS": {"search": {"predictor": True}}},
            "sklearn",
            rf"{SEARCH}: predictor: scikit-learn is not installed: pip install 'bnas\[surrogate\]'",
        ),
    ],
)
def test_what_is_not_installed_is_told_before_anything_runs(
    keys: dict[str, Any], package: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checks, loggers):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else object())
    assert re.match(message, faults(tmp_path, **keys)[0])


def test_the_page_has_these_keys() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for one in (Configuration, OptimizerSection, LatencySettings, ExportSection):
        assert all(f"| `{key}` |" in page for key in fields_of(one))
