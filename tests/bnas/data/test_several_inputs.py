"""Models with several inputs on the command line and in configuration files: types, names, dynamic axes, whole runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import SEARCH, TRAINING, bnas, found
from torch import Tensor, nn

from bnas.cli.inspection import inspect_model
from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration
from bnas.config.schema import json_schema
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.data.inputs import Input, ShapeError, example_of, parse_dynamic, parse_input, parse_sizes
from bnas.run.files.output import Output
from bnas.run.results.delivery import Delivery
from bnas.run.runner import job_of
from bnas.runtime import Network, SuperNetwork
from bnas.runtime.example import one_sample

TEXT = """
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.words, self.inner = nn.Embedding(20, 16), nn.Linear(16, 24)
        self.outer, self.head = nn.Linear(24, 16), nn.Linear(16, num_classes)
    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids)
        x = x + self.outer(torch.relu(self.inner(x)))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.unsqueeze(-1).to(x.dtype)
        return {"logits": self.head((x * mask).sum(1) / mask.sum(1))}

def data():
    generator = torch.Generator().manual_seed(0)
    def batches(count):
        made = []
        for number in range(count):
            ids = torch.randint(1, 20, (6, 7 + number), generator=generator)
            mask = torch.ones_like(ids)
            mask[0, -2:] = 0
            made.append({"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 3})
        return made
    return bnas.Splits(batches(4), batches(2), batches(2))
"""
IDS: dict[str, Any] = {"sample_size": [2, 8], "type": "long", "range": [0, 19], "dynamic": {"1": "length"}}
MASK = {**IDS, "range": [1, 1], "keyword": "attention_mask"}


class Text(nn.Module):
    """Takes whole numbers, and more of them as targets."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.head(self.words(ids).relu())
        if targets is None:
            return logits
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Indexed(nn.Module):
    """Floating-point numbers beside the places of some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.head(self.first(x).relu()[index[0]])


class Masked(nn.Module):
    """Takes a boolean mask."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 16)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.head(x.masked_fill(mask, 0.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,3,8,8", Input((1, 3, 8, 8))),
        ("2", Input((2,))),
        ("ids=2,16:int64[0..1000]", Input((2, 16), "ids", "int64", (0, 1000))),
        ("2,3:bfloat16", Input((2, 3), None, "bfloat16")),
        ("x=2, 3:float32[-1..0.5]", Input((2, 3), "x", "float32", (-1, 0.5))),
    ],
)
def test_inputs_are_read(text: str, expected: Input) -> None:
    assert parse_input(text) == expected
    assert parse_input(expected.text) == expected


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_input, "1x6", "is not a shape"),
        (parse_input, "2,0", "is not a shape"),
        (parse_input, "2,3:int65", "'int65' is not a number type; write one of float, long"),
        (parse_input, "2,3:int64[5..1]", "the lower end of the range is above the upper end"),
        (parse_input, "2,3:int64[5]", "is not a shape; write SHAPE, SHAPE:TYPE or NAME=SHAPE:TYPE"),
        (lambda text: parse_dynamic([text]), "x=length", "write NAME:AXIS=TITLE, such as input_ids:1=length"),
        (lambda text: parse_sizes([text]), "length:3", "such as height=64"),
    ],
)
def test_what_is_not_written_right_is_told(read: Any, text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        read(text)


def types(model: nn.Module, *inputs: Input) -> list[str | None]:
    return [one.type for one in example_of(model.eval(), inputs).inputs]


def test_types_are_found_by_trying() -> None:
    plain = Input((2, 6))
    assert types(nn.Linear(6, 3), plain) == ["float32"]
    assert types(nn.Linear(6, 3).bfloat16(), plain) == ["bfloat16"]
    assert types(nn.Linear(6, 3).half(), plain) == ["float16"]
    assert types(Text(), plain) == ["int64"]
    assert types(Text(), plain, plain) == ["int64", "int64"]
    assert types(Indexed(), Input((5, 6)), Input((2, 4))) == ["float32", "int64"]
    assert types(Masked(), plain, Input((2, 6), "mask")) == ["float32", "bool"]
    assert types(Masked(), plain, Input((2, 6), "mask", "int64")) == ["float32", "int64"]  # as told, right or wrong


def test_example_values_are_random_and_the_same_every_time() -> None:
    model, inputs = Indexed().eval(), [Input((5, 6)), Input((2, 9), None, "int64", (0, 4))]
    state = torch.get_rng_state()
    (x, index), again = example_of(model, inputs).value, example_of(model, inputs).value
    assert torch.equal(x, again[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert x.std() > 0.5
    assert (int(index.min()), int(index.max())) == (0, 4)
    (one,) = [example_of(nn.Linear(6, 3), [Input((2, 6), None, "float", (2, 3))]).value]
    assert bool(((one >= 2) & (one <= 3)).all())


def test_trying_types_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(0, 1), nn.BatchNorm1d(4)).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    assert example_of(model, [Input((2, 3))]).chosen
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_lazy_models_get_their_shapes() -> None:
    for given in (Input((2, 6)), Input((2, 6), None, "float32")):
        model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3)).eval()
        found = inspect_model("lazy", model, [given]).to_json()
        assert found["parameters"]["maximal"] == 6 * 16 + 16 + 16 * 3 + 3


def test_an_input_given_twice_is_told() -> None:
    with pytest.raises(ShapeError, match="input 'ids' is given twice"):
        example_of(Text(), [Input((2, 3)), Input((2, 3), "ids")])


def test_dynamic_axes_are_told_with_reasons() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    told = inspect_model("net", model, [Input((2, 3, 8, 8))]).to_json()
    assert told["dynamic"]["axes"] == {"input": {"0": "batch", "2": "height", "3": "width"}}
    assert told["dynamic"]["static"] == {"input[1]": "channels"}
    assert told["inputs"] == [{"name": "input", "shape": [2, 3, 8, 8], "type": "float32", "range": None}]
    flat = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 64, 4)).eval()
    told = inspect_model("net", flat, [Input((2, 3, 8, 8))]).to_json()["dynamic"]
    assert told["axes"] == {"input": {"0": "batch"}}
    assert list(told["static"]) == ["input[1]", "input[2]", "input[3]"]
    assert len(told["static"]["input[2]"]) > 20


def test_costs_at_other_sizes() -> None:
    model, inputs = Text().eval(), [Input((2, 6)), Input((2, 6))]
    named = {"ids": {1: "length"}, "targets": {1: "length"}}
    short, long = (inspect_model("net", model, inputs, named, sizes).to_json() for sizes in ({}, {"length": 12}))
    assert long["macs"]["maximal"] == 2 * short["macs"]["maximal"]
    assert (short["sizes"], long["sizes"]) == ({}, {"length": 12})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.py").write_text(TEXT)
    return tmp_path


def test_inspect_names_inputs_and_axes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("inspect", "text.py:Net", "--input", "input_ids=2,8:int64[0..19]", "--input", "attention_mask=2,8:long")
    axes = ("--dynamic", "input_ids:1=words", "--dynamic", "attention_mask:1=words")
    assert bnas(monkeypatch, *own, *axes, "--sizes", "words=16", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dynamic"]["axes"]["attention_mask"] == {"0": "batch", "1": "words"}
    assert told["inputs"][0] == {"name": "input_ids", "shape": [2, 8], "type": "int64", "range": [0, 19]}
    assert bnas(monkeypatch, "inspect", "text.py:Net", "--input", "2,8") == 0
    text = capsys.readouterr().out
    assert "input input_ids: 2,8:int64[0..1]" in text
    assert "whole numbers were used" in text
    assert "length: any size" in text
    assert bnas(monkeypatch, *own, "--sizes", "width=16") == 1
    assert "there is no dynamic axis 'width'" in capsys.readouterr().err


def configuration(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "text.py:Net",
        "data": "text.py:data",
        "input_info": [IDS, MASK],
        "latency": {"runs": 2, "sizes": {"length": 24}},
    }
    search = {**SEARCH, "num_evals": 4}
    return {**base, "bootstrapNAS": {"training": TRAINING, "search": search}, **changes}


def test_a_run_with_named_inputs_and_batches_of_dicts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").write_text(json.dumps(configuration()))
    assert bnas(monkeypatch, "train", "config.json", "-o", "run") == 0, capsys.readouterr().err
    assert bnas(monkeypatch, "train", "config.json", "-o", "run", "--resume") == 0
    assert bnas(monkeypatch, "search", "run") == 0, capsys.readouterr().err
    before = found(folder / "run")
    assert bnas(monkeypatch, "search", "run", "--resume", "--set", "bootstrapNAS.search.num_evals=5") == 0
    assert found(folder / "run")[:4] == before
    assert bnas(monkeypatch, "export", "run") == 0, capsys.readouterr().err
    kept = json.loads((folder / "run" / "config.json").read_text())["input_info"]
    assert [one["dynamic"] for one in kept] == [{"1": "length"}] * 2
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    assert [row["int8"]["failure"] for row in rows] == [None] * 3
    assert bnas(monkeypatch, "export", "run", "--onnx", "best.onnx") == 0, capsys.readouterr().err
    dims = {
        one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in onnx.load("best.onnx").graph.input
    }
    assert dims == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
    session = onnxruntime.InferenceSession("best.onnx", providers=["CPUExecutionProvider"])
    feed = {name: np.ones((3, 11), np.int64) for name in dims}
    assert session.run(None, feed)[0].shape == (3, 3)
    capsys.readouterr()
    assert bnas(monkeypatch, "bench", "best.onnx", "--sizes", "length=64", "--runs", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["best.onnx"]["median_ms"] > 0
    assert bnas(monkeypatch, "bench", "best.onnx", "--sizes", "height=64") == 1
    assert "there is no dynamic axis 'height'; there are batch, length" in capsys.readouterr().err
    assert bnas(monkeypatch, "report", "run") == 0, capsys.readouterr().err


def test_latency_is_measured_at_the_sizes_of_the_configuration(folder: Path) -> None:
    job = job_of(parse_configuration(configuration(), "file"), folder)
    made = SuperNetwork.from_model(job.model, job.example_inputs, job.elasticity, dynamic=job.dynamic)
    delivery = Delivery(job, Output(folder, resumed=True), made, [])
    assert job.latency.sizes == {"length": 24}
    declared = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        for name in ("input_ids", "attention_mask")
    ]
    file = onnx.helper.make_model(onnx.helper.make_graph([], "texts", declared, []))
    network = Network("original", folder / "original.onnx", file, None, ())
    feeds = delivery._feeds(network, one_sample(made, job.latency.sizes, 3))
    assert {name: one.shape for name, one in feeds.items()} == {"input_ids": (3, 24), "attention_mask": (3, 24)}
    assert feeds["input_ids"].max() > 1
    assert set(feeds["attention_mask"].ravel().tolist()) == {1}
    assert delivery._feeds(network, one_sample(made, {}, 3))["input_ids"].shape == (3, 8)
    plain = parse_configuration({**configuration(), "latency": {}}, "file")
    assert job_of(plain, folder).latency.sizes is None


def test_one_input_stays_a_mapping_and_several_are_a_list() -> None:
    base = {"model": "m", "data": "d"}
    one = parse_configuration({**base, "input_info": {"sample_size": [1, 3]}}, "file")
    assert one.input_info[0].sample_size == (1, 3)
    written = one.model_dump(mode="json")["input_info"]
    assert written["sample_size"] == [1, 3]
    assert Configuration.model_validate(one.model_dump(mode="json")) == one
    several = parse_configuration({**base, "input_info": [IDS, {**MASK, "dynamic": {1: "length"}}]}, "file")
    assert several.input_info[1].dynamic == {"1": "length"}
    assert Configuration.model_validate(several.model_dump(mode="json")) == several
    keys = json_schema()["$defs"]["InputInfo"]["properties"]
    assert {"sample_size", "type", "keyword", "dynamic", "range"} <= set(keys)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sample_sise": [1, 3]}, "input_info.sample_sise is not a key of bnas; did you mean 'sample_size'?"),
        ([{"sample_size": [1]}, {"sample_size": [0]}], "input_info[1].sample_size[0] is 0: must be greater than or"),
        ({"sample_size": [1], "type": "lng"}, "input_info.type is 'lng': must be 'float', 'long'"),
        ({"sample_size": [1], "range": [3, 1]}, "input_info.range is [3, 1]: must begin with the smaller value"),
        ({"sample_size": [1], "dynamic": {"x": "y"}}, "input_info.dynamic"),
        ([], "input_info is []"),
    ],
)
def test_faults_of_inputs_are_told_with_their_place(entries: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration({"model": "m", "data": "d", "input_info": entries}, "file")
    assert any(fault.startswith(message) for fault in caught.value.faults), caught.value.faults


def test_the_filler_of_bootstrapnas_is_not_needed() -> None:
    with pytest.warns(ConfigurationWarning, match="filler has no effect"):
        parse_configuration(
            {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3], "filler": "ones"}}, "file"
        )
