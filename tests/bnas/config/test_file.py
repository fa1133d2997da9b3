"""Configuration files: their formats, faults with their places, keys from the command line, and the schema."""

from __future__ import annotations

import json
import re
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import torchvision
from torch import nn

import bnas
from bnas.config.bootstrapnas import Depth, OptimizerSection, Search, StageDescription, Width
from bnas.config.configuration import Configuration
from bnas.config.file import load_config, parse_configuration, with_changes
from bnas.config.schema import examples, json_schema
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.config.settings import elasticity_of, job_settings
from bnas.config.table import tables
from bnas.data.factories import SourceError
from bnas.data.files import DataError
from bnas.passes import analyse, skippable_blocks, trace
from bnas.passes.faults import fields_of, other_names
from bnas.run import runner
from bnas.run.runner import job_of
from bnas.runtime.train.optimizers import optimizer_of

PUBLISHED = sorted((Path(__file__).parents[2] / "support" / "published").glob("*.json"))
BASE = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}


def told(data: Any) -> tuple[str, ...]:
    """The faults of a configuration."""
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(data, "file")
    assert isinstance(caught.value, bnas.BnasError)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


def test_all_faults_are_told_at_once_each_with_its_place() -> None:
    stages = [{}, {}, {"width_indicator": 0, "epoch": 3}]
    training = {
        "schedule": {"list_stage_descriptions": stages},
        "compression": [{"algorithm": "knowledge_distillation", "type": "softmx"}],
        "elasticity": {
            "width": {"width_multiplier": [1, 2], "min_out_channels": 8, "min_width": 8},
            "depth": {"skipped_blocks": ["a", ["a", "b", "c"], ["a"], 3]},
        },
    }
    search = {"algorithm": "RNSGA2", "sample_rate": 2, "num_evals": "many", "qqq": 1}
    at = "bootstrapNAS.training"
    assert told(
        {
            "optimizer": {"momentum": float("inf")},
            "input_info": 3,
            "bootstrapNAS": {"training": training, "search": search},
        }
    ) == (
        "model is missing; A torchvision model, resnet50_cifar10; package.module:FACTORY; file.py:FACTORY; file.pt2",
        "data is missing; A folder of a data set, of images or of .npz files; a .npz file; a factory of bnas.Splits",
        "input_info is 3: must be a mapping of keys",
        "optimizer.momentum is inf: must be a finite number",
        f"{at}.schedule.list_stage_descriptions[2].width_indicator is 0: must be greater than or equal to 1",
        f"{at}.schedule.list_stage_descriptions[2].epoch is not a key of bnas; did you mean 'epochs'?",
        f"{at}.elasticity.width.width_multiplier[1] is 2: must be less than or equal to 1",
        f"{at}.elasticity.width.min_out_channels is given twice: min_out_channels is another name of min_width; "
        "give one of them",
        f"{at}.elasticity.depth.skipped_blocks[1] is ['a', 'b', 'c']: must be a valid string or must have at most 2 "
        "items",
        f"{at}.elasticity.depth.skipped_blocks[2] is ['a']: must be a valid string or too short",
        f"{at}.elasticity.depth.skipped_blocks[3] is 3: must be a valid string or must be a valid tuple",
        f"{at}.compression[0].type is 'softmx': must be 'softmax' or 'mse'; did you mean 'softmax'?",
        "bootstrapNAS.search.aspiration_points is None: aspiration_points and the algorithm 'RNSGA2' need each other: "
        "give both or neither",
        "bootstrapNAS.search.num_evals is 'many': must be a valid integer, unable to parse string as an integer",
        "bootstrapNAS.search.sample_rate is not a key of bnas; 'sample_rate' belongs to "
        f"{at}.schedule.list_stage_descriptions[n]",
        "bootstrapNAS.search.qqq is not a key of bnas; there are " + ", ".join(Search.model_fields),
    )


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_mapping_is_told(data: Any) -> None:
    assert told(data) == (f"the file is {data!r}: must be a mapping of keys",)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_contradictions_are_told_at_once(tmp_path: Path) -> None:
    training = {
        "rule": "sandwich",
        "subnets_per_step": 1,
        "schedule": {"list_stage_descriptions": [{"train_dims": ["depth"]}, {"epochs": 3, "epochs_lr": 2}]},
        "elasticity": {"available_elasticity_dims": ["width"], "depth": {"min_block_size": 9, "max_block_size": 8}},
    }
    search = {"constraints": ["macs <= 1 G", "macs less"]}
    data = {**BASE, "bootstrapNAS": {"training": training, "search": search}}
    with pytest.raises(ConfigurationError) as caught:
        bnas.load_config(write(tmp_path, "c.json", json.dumps(data)))
    at = "bootstrapNAS.training"
    assert [re.split(r": | is ", fault)[0] for fault in caught.value.faults] == [
        f"{at}.schedule.list_stage_descriptions[1].epochs_lr",
        f"{at}.elasticity.depth.max_block_size",
        f"{at}.subnets_per_step",
        "bootstrapNAS.search.constraints[1]",
    ]
    assert load_config(write(tmp_path, "d.json", json.dumps(BASE))).model == "m"


def test_five_faults_of_five_kinds_are_told_at_once(tmp_path: Path) -> None:
    """An unknown key, a wrong type, two contradictions and a name that there is not, in either layout."""
    peer = {
        "bootstrapNAS": {
            "training": {
                "elasticity": {"width": {"filter_importance": "L3"}},
                "schedule": {"list_stage_descriptions": [{"train_dims": ["depth"]}, {"train_dims": ["width"]}]},
            },
            "search": {"num_evals": 40, "population": 50},
        }
    }
    own = {
        "elasticity": {"filter_importance": "L3"},
        "stages": [{"train_dims": ["depth"]}, {"train_dims": ["width"]}],
        "search": {"algorithm": {"name": "NSGA2", "population": 50}, "num_evals": 40},
    }
    for layout, places in (
        (peer, ("bootstrapNAS.training.elasticity.width", "bootstrapNAS.search", "bootstrapNAS.training.schedule")),
        (own, ("elasticity", "search", "stages")),
    ):
        path = write(tmp_path, "c.json", json.dumps({**BASE, "modle": 1, "batch_size": "x", "device": "gpu", **layout}))
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        found = set(caught.value.faults)
        elasticity, search, stages = places
        assert "modle is not a key of bnas; did you mean 'model'?" in found
        assert "batch_size is 'x': must be a valid integer, unable to parse string as an integer" in found
        measures = "'L1', 'L2', 'geometric_median', 'taylor' or 'external'"
        assert f"{elasticity}.filter_importance is 'L3': must be {measures}" in found
        larger = "smaller than the population of 50; lower the population or raise num_evals"
        assert f"{search}.num_evals is 40: {larger}" in found
        assert sum(fault.startswith("device: 'gpu' is not a compute device") for fault in found) == 1
        leaves = f"{stages}: list_stage_descriptions[1].train_dims: 'depth' is missing"
        assert sum(fault.startswith(leaves) for fault in found) == 1
        assert len(found) == 6


def test_a_file_has_one_of_the_layouts(tmp_path: Path) -> None:
    data = {**BASE, "bootstrapNAS": {}, "recipe": {}, "search": {"num_evals": 40}}
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, "c.json", json.dumps(data)))
    told = "and bootstrapNAS (BootstrapNAS's layout) set the same things; give only one of the two"
    assert caught.value.faults == (f"recipe {told}", f"search {told}")


def test_a_metric_in_the_layout_of_bootstrapnas_says_where_its_settings_go(tmp_path: Path) -> None:
    metric = {"function": "task.py:mae", "direction": "min"}
    with pytest.raises(
        ConfigurationError, match="searches for accuracy only; write its settings as elasticity, stages"
    ):
        load_config(write(tmp_path, "c.json", json.dumps({**BASE, "bootstrapNAS": {}, "metric": metric})))


def test_several_unknown_keys_share_the_list_of_known_ones(tmp_path: Path) -> None:
    """As the keys that the scripts of others read from the same file; one that is nearly right has its own message."""
    data = {**BASE, "print_freq": 10, "wxyz": 2, "devise": "cpu", "search": {"qqq": 1}}
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, "c.json", json.dumps(data)))
    told = sorted(caught.value.faults)
    assert [one.partition(";")[0] for one in told] == [
        "devise is not a key of bnas",
        "print_freq and wxyz are not keys of bnas",
        "search.qqq is not a key of bnas",
    ]
    assert "there are model, num_classes" in told[1]


@pytest.mark.parametrize("key", ["targets", "latencies", "model_options", "data_options"])
def test_null_removes_the_entries_of_a_mapping(tmp_path: Path, key: str) -> None:
    given = {"targets": {"half": "macs <= 50 %"}, "latencies": {"fast": {"threads": 2}}}.get(key, {"size": 8})
    file = write(tmp_path, "c.json", json.dumps({**BASE, key: given}))
    assert len(getattr(load_config(file), key)) == 1
    assert getattr(load_config(file, [f"{key}=null"]), key) == {}


OWN_LAYOUT: dict[str, Any] = {
    "elasticity": {"min_width": 4, "widths": {"a": [8, 4]}, "pin": "b"},
    "stages": [{"train_dims": ["depth"]}, {"reorg_weights": True}],
    "recipe": {"rule": "sandwich", "optimizer": "AdamW", "distillation": {"teacher": "original"}},
    "checkpoint_every": 5,
    "objectives": [{"name": "accuracy", "direction": "max"}, {"name": "latency", "direction": "min"}],
    "search": {"algorithm": {"name": "NSGA2", "population": 8}, "num_evals": 40, "constraints": ["macs <= 1 G"]},
    "acc_delta": 0.02,
    "reference": "maximal",
    "num_bn_adaptation_samples": 100,
    "latency": {"runs": 5, "sizes": {"length": 8}},
    "latencies": {"quick": {"int8": True, "threads": 2}},
    "export": {"calibration_samples": 32},
}


def test_our_own_layout_is_the_classes(tmp_path: Path) -> None:
    settings = job_settings(parse_configuration({**BASE, **OWN_LAYOUT}, "file"), tmp_path)
    assert settings == {
        "elasticity": bnas.Elasticity(min_width=4, widths={"a": (8, 4)}, pin=("b",)),
        "stages": (bnas.Stage(("depth",)), bnas.Stage(reorg_weights=True)),
        "recipe": bnas.Recipe("sandwich", optimizer="adamw", distillation=bnas.Distillation("original")),
        "training": {"checkpoint_every": 5},
        "quality": bnas.run.Quality(),
        "objectives": (bnas.Objective("accuracy", "max"), bnas.Objective("latency", "min")),
        "search": bnas.SearchSettings(
            algorithm=bnas.NSGA2(population=8), num_evals=40, constraints=("macs <= 1000000000",)
        ),
        "targets": {},
        "fine_tune": None,
        "budget": None,
        "acc_delta": 0.02,
        "reference": "maximal",
        "num_bn_adaptation_samples": 100,
        "latency": bnas.LatencySettings(runs=5, sizes={"length": 8}),
        "latencies": {"quick": bnas.LatencySettings(int8=bnas.Int8(), threads=2)},
        "int8": bnas.Int8(samples=32),
        "tensorboard": False,
    }


def test_our_own_layout_is_kept_whole_and_fits_the_schema(tmp_path: Path) -> None:
    found = parse_configuration({**BASE, **OWN_LAYOUT}, "file")
    kept = found.model_dump(mode="json")
    assert parse_configuration(kept, "again") == found
    for data in ({**BASE, **OWN_LAYOUT}, kept, parse_configuration(BASE, "file").model_dump(mode="json")):
        jsonschema.validate(data, json_schema())
    assert "bootstrapNAS" not in kept
    assert job_settings(parse_configuration(BASE, "file"), tmp_path)["recipe"] == bnas.Recipe()


TEXTS = {
    "c.json": '{"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}, "optimizer": {"base_lr": 1e-4}}',
    "c.json5": "{model: 'm', data: 'd', // comment\n input_info: {sample_size: [1, 3,]}, optimizer: {base_lr: 1e-4,},}",
    "c.yaml": "model: m  # comment\ndata: d\ninput_info: {sample_size: [1, 3]}\noptimizer:\n  base_lr: 1e-4\n",
}


@pytest.mark.parametrize(("name", "text"), [*TEXTS.items(), ("c.yml", TEXTS["c.yaml"]), ("c.json", TEXTS["c.json5"])])
def test_formats_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    expected = parse_configuration({**BASE, "optimizer": {"base_lr": 1e-4}}, "file")
    assert load_config(write(tmp_path, name, text)) == expected
    assert load_config(str(tmp_path / name)).optimizer.base_lr == 1e-4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", '{"model": "m",\n "data" "d"}', 'is not valid JSON: line 2, column 9: Unexpected """'),
        ("c.json5", "{model: 'm',\n data: 'd'", "is not valid JSON: line 2, column 11: Unexpected end of input"),
        ("c.json", '{"model": "m", "model": "n"}', "the key 'model' appears twice"),
        ("c.yaml", "model: m\n data: d\n", "is not valid YAML: line 2, column 6: mapping values are not allowed here"),
        ("c.yaml", "model: !!python/object:os.system x\n", "is not valid YAML: line 1, column 8: could not determine"),
        ("c.toml", "", "the ending '.toml' is not one of .json, .json5, .yaml, .yml"),
        ("c.json", "\x00", "is not valid JSON"),
        ("c.yaml", " \n", "is empty (`bnas init` writes one)"),
    ],
)
def test_faults_of_syntax_have_a_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    for name, message in (("gone.json", "there is no such"), ("folder.json", "is a folder"), ("latin.json", "UTF-8")):
        with pytest.raises(ConfigurationError, match=f"{name}: .*{message}"):
            load_config(tmp_path / name)


def test_changes_are_json_or_text_and_come_in_order() -> None:
    data = {"a": {"b": [{"c": 1}, {"c": 2}]}}
    changes = ["a.b[1].c=[1, 2]", "a.b[0].c=text", "a.d.e=x=y", "a.d.e=null", "a.d.f=true"]
    expected = {"a": {"b": [{"c": "text"}, {"c": [1, 2]}], "d": {"e": None, "f": True}}}
    assert with_changes(data, changes) == expected
    assert data == {"a": {"b": [{"c": 1}, {"c": 2}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model", "--set model: is not KEY=VALUE"),
        ("a b=1", "is not KEY=VALUE"),
        ("a..b=1", "is not KEY=VALUE"),
        ("model.name=1", "--set model.name=1: model is 'm', which has no keys"),
        ("input_info.sample_size.0=1", "which has no keys; write input_info.sample_size[0] for an entry"),
        ("input_info[0]=1", "which has no entries"),
        ("input_info.sample_size[2]=1", "input_info.sample_size has 2 entries; the first is [0]"),
        (
            "bootstrapNAS.search.num_eval=4",
            "bootstrapNAS.search.num_eval is not a key of bnas; did you mean 'num_evals'?",
        ),
        ("bootstrapNAS.serach.seed=4", "bootstrapNAS.serach is not a key of bnas; did you mean 'search'?"),
        ("bootstrapNAS.search.seed=-1", "--set bootstrapNAS.search.seed=-1: bootstrapNAS.search.seed is -1: must be"),
    ],
)
def test_changes_that_do_not_fit_are_told(change: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "c.json", json.dumps(BASE))
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, [change])
    assert message in str(caught.value)


def test_changes_reach_the_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, "c.json", json.dumps(BASE))
    found = load_config(path, ["bootstrapNAS.search.num_evals=40", "optimizer.base_lr=1e-3", "model=n"])
    assert (found.bootstrapNAS.search.num_evals, found.optimizer.base_lr, found.model) == (40, 1e-3, "n")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_configurations_load_and_fit_the_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(json.loads(path.read_text()), json_schema())
    with pytest.warns(ConfigurationWarning):
        found = load_config(path)
    assert (found.model, found.num_classes, found.dataset) == ("resnet50_cifar10", 10, "cifar10")
    assert (found.batch_size, found.batch_size_val, found.optimizer.no_decay_keys) == (64, 2000, "bn#bias")
    search = found.bootstrapNAS.search
    assert (search.num_evals, search.population, search.ref_acc) == (3000, 50, 93.65)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what a run keeps in its folder says nothing twice
        assert parse_configuration(found.model_dump(mode="json"), "again") == found
    jsonschema.validate(found.model_dump(mode="json"), json_schema())


@pytest.mark.parametrize(
    "part",
    [
        {"training": {"compression": {"algorithm": "knowledge_distillation", "type": "mse"}}},
        {"training": {"compression": []}},
        {"training": {"lr_schedule": {"params": {}}}},
        {"training": {"elasticity": {"width": {"max_num_widths": -1, "width_multiplier": [1]}, "pin": "a"}}},
        {"search": {"objectives": [{"name": "accuracy", "direction": "max"}]}},
    ],
)
def test_the_schema_takes_what_is_read(part: dict[str, Any]) -> None:
    data = {**BASE, "bootstrapNAS": part}
    parse_configuration(data, "file")
    jsonschema.validate(data, json_schema())


@pytest.mark.parametrize(
    "part", [{"search": {"num_eval": 3}}, {"training": {"elasticity": {"kernel": {"max_num_kernels": 0}}}}]
)
def test_the_schema_refuses_what_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**BASE, "bootstrapNAS": part}, json_schema())


def test_endpoints_of_the_published_configuration_are_blocks_of_a_resnet50(tmp_path: Path) -> None:
    model = torchvision.models.resnet50(num_classes=10).eval()
    with pytest.warns(ConfigurationWarning):
        elasticity = elasticity_of(load_config(PUBLISHED[0]), tmp_path)
    blocks = skippable_blocks(analyse(trace(model, torch.zeros(1, 3, 32, 32))), elasticity)
    assert [one.name for one in blocks.found] == [
        "layer1.2", "layer2.2", "layer2.3", "layer3.4", "layer3.5", "layer4.2"
    ]  # fmt: skip


def test_keys_for_the_factories_and_the_optimizer_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    model, got = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), {}
    monkeypatch.setattr(runner, "load_model", lambda *_, **options: got.update(options) or model)
    splits = bnas.Splits([], [], [])
    monkeypatch.setattr(runner, "load_data", lambda *_, **options: got.update(options) or splits)
    optimizer = {"no_decay_keys": "1.#bias", "weight_decay": 0.5, "base_lr": 0.25}
    search = {"objectives": [{"name": "latency", "direction": "min"}, {"name": "accuracy", "direction": "max"}]}
    data = {**BASE, "num_classes": 7, "batch_size": 3, "optimizer": optimizer, "bootstrapNAS": {"search": search}}
    job = job_of(parse_configuration({**data, "data_options": {"root": "x"}}, "file"), Path())
    assert got == {"num_classes": 7, "batch_size": 3, "root": "x"}
    assert job.objectives == (bnas.Objective("latency", "min"), bnas.Objective("accuracy", "max"))
    own = dict(model.named_parameters())
    made = optimizer_of(job.recipe, list(own.values()), own)
    decay = {id(one): group["weight_decay"] for group in made.param_groups for one in group["params"]}
    assert [decay[id(one)] for one in own.values()] == [0.5, 0, 0, 0]
    assert all(group["lr"] == 0.25 and group["momentum"] == 0.9 and group["nesterov"] for group in made.param_groups)


@pytest.mark.parametrize(
    ("objectives", "reason"),
    [
        ([{"name": "macs", "direction": "min"}], "'accuracy' must be one of them"),
        ([{"name": "accuracy", "direction": "max"}] * 2, "a name appears twice"),
        ([{"name": "accuracy", "direction": "up"}], r"objectives\[0\].direction is 'up': must be 'min' or 'max'"),
        ([], "must have at least 1 item"),
    ],
)
def test_objectives_that_cannot_be_are_told(objectives: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        parse_configuration({**BASE, "bootstrapNAS": {"search": {"objectives": objectives}}}, "file")


def test_factories_that_do_not_fit_are_told(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "import torch\ndef net(): return torch.nn.Identity()\ndef data(folder): return 3\n")
    data = {**BASE, "model": "mine.py:net", "data": "mine.py:data"}
    with pytest.raises(
        SourceError, match=r"mine.py:net is called with .*unexpected keyword.*; it accepts no arguments"
    ):
        job_of(parse_configuration({**data, "num_classes": 3}, "file"), tmp_path)
    with pytest.raises(SourceError, match=r"missing a required argument: 'folder'; it accepts folder"):
        job_of(parse_configuration(data, "file"), tmp_path)
    with pytest.raises(DataError, match="CIFAR10 is not there; set the key 'data' to its folder"):
        job_of(parse_configuration({**data, "data": None, "dataset": "cifar10"}, "file"), tmp_path)


CLASSES = (
    bnas.Elasticity,
    bnas.Stage,
    bnas.Recipe,
    bnas.Distillation,
    bnas.SearchSettings,
    bnas.NSGA2,
    bnas.RNSGA2,
    bnas.RandomSearch,
    bnas.Objective,
    bnas.LatencySettings,
)
PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_has_every_key_as_the_models_have_it() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8")
    known = re.findall(r"^\| `(\w+)` \|", tables(), re.MULTILINE)
    for section in (Configuration, OptimizerSection, StageDescription, Width, Depth, Search, *CLASSES):
        assert set(known) >= {*fields_of(section), *other_names(section), *getattr(section, "unneeded", ())}


EXAMPLES = resources.files("bnas.config").joinpath("examples")


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_example_loads_and_fits_the_schema(name: str) -> None:
    jsonschema.validate(examples()[name], json_schema())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load_config(Path(str(EXAMPLES / name)))
    assert {one.category for one in told} <= {ConfigurationWarning}
    assert bool(told) == name.startswith("bootstrapnas")
    assert found.model == examples()[name]["model"]


def test_every_key_has_an_example() -> None:
    cells = re.findall(r"^\| `\w+` \| .*? \| .*? \| (.*?) \| .* \|$", tables(), re.MULTILINE)
    assert len(cells) > 200
    assert [cell for cell in cells if not re.fullmatch("`.+`", cell)] == []


def test_an_unknown_key_does_not_hide_a_contradiction_beside_it(tmp_path: Path) -> None:
    stages = [{"train_dims": ["depth"], "epoch": 3}, {"train_dims": ["width"]}]
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, "c.json", json.dumps({**BASE, "stages": stages})))
    unknown, contradiction = caught.value.faults
    assert unknown == "stages[0].epoch is not a key of bnas; did you mean 'epochs'?"
    assert contradiction.startswith("stages: list_stage_descriptions[1].train_dims: 'depth' is missing")
