"""The training keys of a configuration file: those of BootstrapNAS, as documented, and ours."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined
from torch import nn

import bnas
from bnas.config.bootstrapnas import POPULATION, BootstrapNAS
from bnas.config.file import parse_configuration
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.config.settings import recipe_of
from bnas.passes.faults import fields_of, sections
from bnas.run import runner
from bnas.run.job import Job
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage, TrainingError
from bnas.runtime.train.stages import check_stages

PUBLISHED = Path(__file__).parents[2] / "support" / "published"


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "load_model", lambda *_, **__: nn.Identity())
    monkeypatch.setattr(runner, "load_data", lambda *_, **__: bnas.Splits([], [], []))


def read(training: dict[str, Any], optimizer: dict[str, Any] | None = None) -> Job:
    """The job that a configuration file with these sections stands for."""
    base = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}, "optimizer": optimizer or {}}
    configuration = parse_configuration({**base, "bootstrapNAS": {"training": training}}, "file")
    return runner.job_of(configuration, Path())


def recipe(**training: Any) -> Recipe:
    return read(training).recipe


def test_nothing_said_is_the_default_of_the_library() -> None:
    job = read({})
    assert job.recipe == Recipe()
    assert tuple(job.stages) == tuple(Job.stages)


KD = {"algorithm": "knowledge_distillation"}


@pytest.mark.parametrize(
    ("training", "changes"),
    [
        ({"algorithm": "progressive_shrinking"}, {}),
        ({"progressivity_of_elasticity": ["width", "depth", "kernel"]}, {}),
        ({"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}, {"num_bn_adaptation_samples": 0}),
        ({"batchnorm_adaptation": {}}, {"num_bn_adaptation_samples": 2000}),
        ({"lr_schedule": {}}, {"lr_schedule": None}),
        ({"lr_schedule": {"params": {}}}, {"lr_schedule": None}),
        ({"lr_schedule": {"params": {"base_lr": 0.1}}}, {"lr_schedule": CosineSchedule(0.1)}),
        (
            {"lr_schedule": {"params": {"base_lr": 0.1, "num_epochs": 9, "warmup_epochs": 2, "warmup_lr": 0.01}}},
            {"lr_schedule": CosineSchedule(0.1, 9, 2, 0.01)},
        ),
        ({"compression": []}, {"distillation": None}),
        ({"compression": [{**KD, "type": "mse"}]}, {"distillation": Distillation("original", "mse", hard=1.0)}),
        (
            {"compression": {**KD, "type": "softmax", "scale": 2.0, "temperature": 4.0}},
            {"distillation": Distillation("original", "softmax", 2.0, 4.0, 1.0)},
        ),
        (
            {"compression": {**KD, "type": "softmax", "teacher": "maximal", "hard": 0.0}},
            {"distillation": Distillation()},
        ),
        ({"train_steps": 1000}, {"train_steps": 1000}),
        ({"rule": "sandwich", "subnets_per_step": 4}, {"rule": "sandwich", "subnets_per_step": 4}),
        ({"sampling": "spread"}, {"sampling": "spread"}),
        ({"rule": "random"}, {"rule": "random", "distillation": None}),
        ({"clip_norm": 1.0}, {"clip_norm": 1.0}),
        ({"ema_decay": 0.99}, {"ema_decay": 0.99}),
        ({"precision": "bfloat16"}, {"precision": "bfloat16"}),
        ({"memory_format": "channels_last"}, {"memory_format": "channels_last"}),
        ({"accumulate": 4}, {"accumulate": 4}),
    ],
)
def test_key_reaches_the_recipe(training: dict[str, Any], changes: dict[str, Any]) -> None:
    if "progressivity_of_elasticity" in training:
        changes = {"progressivity_of_elasticity": ("width", "depth", "kernel")}
    assert recipe(**training) == replace(Recipe(), **changes)


def test_optimizer_keys_reach_the_recipe() -> None:
    given = {"type": "sgd", "base_lr": 0.5, "momentum": 0.5, "nesterov": False, "weight_decay": 0.1}
    expected = Recipe(learning_rate=0.5, momentum=0.5, nesterov=False, weight_decay=0.1, label_smoothing=0.2)
    assert read({}, {**given, "label_smoothing": 0.2}).recipe == expected


@pytest.mark.parametrize(
    ("description", "stage"),
    [
        ({}, Stage()),
        ({"train_dims": ["depth"], "epochs": 3}, Stage(("depth",), 3)),
        ({"depth_indicator": 2, "width_indicator": 3}, Stage(None, 1, 2, 3)),
        ({"width_indicator": -1}, Stage(width_indicator=None)),
        ({"reorg_weights": True, "bn_adapt": True}, Stage(reorg_weights=True, bn_adapt=True)),
        ({"init_lr": 2.5e-6, "epochs_lr": 4}, Stage(init_lr=2.5e-6, epochs_lr=4)),
        ({"sample_rate": 5}, Stage(sample_rate=5)),
    ],
)
def test_key_reaches_the_stage(description: dict[str, Any], stage: Stage) -> None:
    job = read({"schedule": {"list_stage_descriptions": [{}, description]}})
    assert list(job.stages) == [Stage(), stage]


STAGE = "training.schedule.list_stage_descriptions[0]"


def staged(**description: Any) -> dict[str, Any]:
    return {"schedule": {"list_stage_descriptions": [description]}}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"algorithm": "once_for_all"}, "training.algorithm is 'once_for_all'"),
        ({"progressivity_of_elasticity": ["widht"]}, "training.progressivity_of_elasticity[0] is 'widht'"),
        ({"batchnorm_adaptation": {"num_bn_adaptation_samples": -1}}, "num_bn_adaptation_samples is -1"),
        ({"batchnorm_adaptation": {"samples": 1}}, "batchnorm_adaptation.samples is not a key"),
        ({"schedule": {"list_stage_descriptions": []}}, "list_stage_descriptions is "),
        ({"schedule": {"list_stage_description": [{}]}}, "did you mean 'list_stage_descriptions'"),
        (staged(train_dim=["depth"]), "did you mean 'train_dims'"),
        (staged(train_dims=["depht"]), f"{STAGE}.train_dims[0] is 'depht'"),
        (staged(epochs=0), f"{STAGE}.epochs is 0"),
        (staged(sample_rate=0), f"{STAGE}.sample_rate is 0"),
        (staged(depth_indicator=0), f"{STAGE}.depth_indicator is 0"),
        (staged(width_indicator=-2), f"{STAGE}.width_indicator is -2"),
        (staged(init_lr=0), f"{STAGE}.init_lr is 0"),
        (staged(epochs_lr=0), f"{STAGE}.epochs_lr is 0"),
        (staged(bn_adapt="perhaps"), f"{STAGE}.bn_adapt is 'perhaps'"),
        ({"lr_schedule": {"params": {"warmup_epochs": 1}}}, "lr_schedule.params.base_lr is missing"),
        ({"lr_schedule": {"base_lr": 1}}, "lr_schedule.base_lr is not a key"),
        ({"lr_schedule": {"params": {"base_lr": 0}}}, "lr_schedule.params.base_lr is 0"),
        ({"lr_schedule": {"params": {"base_lr": 1, "warm_up": 1}}}, "did you mean 'warmup_"),
        ({"compression": [{"algorithm": "filter_pruning"}]}, "compression[0].algorithm is 'filter_pruning'"),
        ({"compression": [{**KD, "type": "kl"}]}, "compression[0].type is 'kl'"),
        ({"compression": [{**KD, "type": "mse"}] * 2}, "2 entries; allowed is one"),
        ({"compression": [{**KD, "type": "mse", "scale": 0}]}, "compression[0].scale is 0"),
        ({"train_steps": 0}, "training.train_steps is 0"),
        ({"rule": "sandwhich"}, "training.rule is 'sandwhich'"),
        ({"sandwich_rule": True}, "training.sandwich_rule is not a key"),
        ({"accumulate": 0}, "training.accumulate is 0"),
        ({"ema_decay": 1}, "training.ema_decay is 1"),
    ],
)
def test_wrong_key_is_named(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read(training)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"compression": [{**KD, "type": "mse", "temperature": 2.0}]}, "temperature is only for the type softmax"),
        ({"rule": "sandwich", "subnets_per_step": 1}, "subnets_per_step is 1: too few for the rule 'sandwich'"),
        (staged(epochs=3, epochs_lr=2), "epochs_lr is 2: smaller than the 3 epochs"),
        (
            {"rule": "random", "compression": {**KD, "type": "mse", "teacher": "maximal"}},
            "the teacher is the maximal sub-network, which the rule 'random'",
        ),
        (
            {"lr_schedule": {"params": {"base_lr": 1, "num_epochs": 1, "warmup_epochs": 1}}},
            "warmup_epochs is 1: must be less than num_epochs",
        ),
    ],
)
def test_contradictions_are_told(training: dict[str, Any], message: str) -> None:
    with pytest.raises((TrainingError, ConfigurationError), match=message):
        read(training)


@pytest.mark.parametrize(
    ("name", "epochs", "first"),
    [
        ("resnet50_cifar10", 125, Stage(("depth", "width"), 125, 2, 4, True, init_lr=2.5e-4, epochs_lr=125)),
        ("shipped_example", 165, Stage(("depth",), 25, 1, init_lr=2.5e-6, epochs_lr=25)),
    ],
)
def test_published_configurations_are_read(name: str, epochs: int, first: Stage) -> None:
    data = json.loads((PUBLISHED / f"{name}.json").read_text())
    with pytest.warns(ConfigurationWarning) as told:
        job = read(data["bootstrapNAS"]["training"], data["optimizer"])
    assert {str(one.message).split(" ")[0] for one in told} == {
        "width.min_out_channels",
        *(["depth.mode"] if "mode" in data["bootstrapNAS"]["training"]["elasticity"]["depth"] else []),
    }
    assert sum(stage.epochs for stage in job.stages) == epochs
    assert job.stages[0] == first
    assert all(stage.reorg_weights for stage in job.stages if "width" in (stage.train_dims or ()))
    assert job.recipe.progressivity_of_elasticity == ("depth", "width")
    assert job.recipe.num_bn_adaptation_samples == 1500
    assert (job.recipe.momentum, job.recipe.nesterov, job.recipe.label_smoothing) == (0.9, True, 0.1)
    check_stages(job.stages, job.elasticity.dimensions, job.recipe.progressivity_of_elasticity)
    with pytest.raises(TrainingError, match="'width' is not elastic"):
        check_stages(job.stages, ("depth",), job.recipe.progressivity_of_elasticity)


@pytest.mark.parametrize("training", [{}, {"compression": []}, {"rule": "random"}])
def test_what_a_run_keeps_stands_for_the_same_recipe(training: dict[str, Any]) -> None:
    base = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}
    found = parse_configuration({**base, "bootstrapNAS": {"training": training}}, "file")
    kept = parse_configuration(found.model_dump(mode="json"), "kept")
    assert recipe_of(kept) == recipe_of(found) == recipe(**training)


def test_the_layout_of_the_peer_has_other_defaults_only_where_it_says_so() -> None:
    classes = (bnas.Elasticity, Stage, Recipe, CosineSchedule, Distillation, bnas.SearchSettings, bnas.NSGA2, bnas.Int8)
    known = {name: info.default for one in classes for name, info in fields_of(one).items()}
    peer = {name: one for _, one in sections(BootstrapNAS) for name, one in fields_of(one).items()}
    different = {
        key for key, info in peer.items() if key in known and info.default not in (known[key], PydanticUndefined)
    }
    sections_of_their_own = {"lr_schedule", "algorithm"}
    assert different - sections_of_their_own == {"num_evals", "teacher", "hard"}
    assert POPULATION != known["population"]


def test_what_is_no_fault_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read({"compression": [], "lr_schedule": {}})
