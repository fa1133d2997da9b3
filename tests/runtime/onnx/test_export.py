"""Exported files compute what PyTorch does; nothing is written if they would not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from bnas.passes.errors import BnasError, LoweringError
from bnas.passes.onnx.builder import OPSET
from bnas.passes.onnx.site import Site
from bnas.runtime.onnx import trial
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.file import OnnxWriteError
from bnas.runtime.onnx.int8 import Int8, QuantisationError
from bnas.runtime.onnx.session import OnnxModule, SessionError, as_array, open_session, run_session
from bnas.runtime.onnx.trial import fits, relative_error, trial_inputs
from bnas.runtime.supernetwork import SuperNetwork


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = F.relu6(self.norm(self.conv(x)))
        return {"logits": self.head(self.drop(features.mean((2, 3)))), "features": features}


@pytest.fixture
def module() -> GraphModule:
    return symbolic_trace(Small())


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(2, 3, 8, 8)]


def test_file_computes_what_the_model_does_in_eval_mode(
    module: GraphModule, images: list[Tensor], tmp_path: Path
) -> None:
    report = export_onnx(module, tmp_path / "small.onnx", images, metadata={"subnet": "{}"})
    content = report.path.read_bytes()
    assert (report.path, report.bytes, report.opset) == (tmp_path / "small.onnx", len(content), OPSET)
    assert report.max_relative_error < 1e-5
    properties = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    outputs = '{"logits": null, "features": null}'
    assert properties == {"subnet": "{}", "bnas.version": version("bnas"), "bnas.outputs": outputs}
    other = torch.randn(5, 3, 8, 8)
    found = run_session(open_session(content), [other])
    with torch.no_grad():
        expected = module.eval()(other)
    torch.testing.assert_close([torch.from_numpy(one) for one in found], list(expected.values()))


def test_modes_inputs_and_weights_are_left_as_they_were(
    module: GraphModule, images: list[Tensor], tmp_path: Path
) -> None:
    module.train()
    module.get_submodule("norm").eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    given = images[0].clone()
    export_onnx(module, tmp_path / "small.onnx", images)
    assert [part.training for part in module.modules()] == modes
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(images[0], given, rtol=0, atol=0)


def slightly_wrong(site: Site) -> str:
    return site.emit("Clip", site.x, site.operand(1e-3, torch.float32), site.operand(6, torch.float32))


def test_wrong_number_is_caught_and_nothing_is_written(
    module: GraphModule, images: list[Tensor], tmp_path: Path, change: Callable[..., Any]
) -> None:
    module.train()
    change(F.relu6, onnx=slightly_wrong)
    with pytest.raises(
        LoweringError, match=r"output '(logits|features)': the relative error .* above the bound of 0\.0001"
    ):
        export_onnx(module, tmp_path / "small.onnx", images)
    assert list(tmp_path.iterdir()) == []
    assert module.training
    assert export_onnx(module, tmp_path / "small.onnx", images, rtol=0.5).max_relative_error > 1e-4


def test_number_that_is_wrong_for_another_batch_only_is_caught(tmp_path: Path, change: Callable[..., Any]) -> None:
    def first_two(site: Site) -> str:
        return site.emit("Mul", site.x, torch.tensor([[1.0], [1.0]]))

    change(F.relu6, onnx=first_two)
    module = symbolic_trace(lambda x: F.relu6(x))
    with pytest.raises(LoweringError, match="the lowered model cannot be verified: ONNX Runtime cannot run it"):
        export_onnx(module, tmp_path / "a.onnx", [torch.rand(2, 3)])
    assert list(tmp_path.iterdir()) == []


def test_double_precision_that_onnx_runtime_does_not_have_says_what_to_do(tmp_path: Path) -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.rand(2, 3, 4, 4)
    with pytest.raises(
        LoweringError, match=r"cannot be verified: ONNX Runtime .*export model\.float\(\) with inputs in"
    ):
        export_onnx(symbolic_trace(module.double()), tmp_path / "a.onnx", [x.double()])
    assert list(tmp_path.iterdir()) == []
    export_onnx(symbolic_trace(module.float()), tmp_path / "a.onnx", [x])


def test_invalid_model_is_caught(tmp_path: Path, change: Callable[..., Any]) -> None:
    change(F.relu6, onnx=lambda site: site.emit("Clippp", site.x))
    with pytest.raises(LoweringError, match="not valid ONNX"):
        export_onnx(symbolic_trace(lambda x: F.relu6(x)), tmp_path / "a.onnx", [torch.rand(2, 3)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([torch.zeros(2, 4, 8, 8)], r"the example inputs \(\(2, 4, 8, 8\) torch.float32\) do not fit the model"),
        ([torch.zeros(2, 3, 8, 8)] * 2, "do not fit the model"),
        (torch.zeros(2, 3, 8), "do not fit the model"),
        (torch.zeros(0, 3, 8, 8), r"example input 0 is empty \(\(0, 3, 8, 8\)\), so the file could not be verified"),
        (torch.full((2, 3, 8, 8), float("nan")), "example input 0 contains NaN, so the file could not be verified"),
        ([np.zeros((2, 3, 8, 8))], "must be a tensor, or a list, tuple or dict with tensors in it, not list"),
        ("images", "must be a tensor, or a list, tuple or dict with tensors in it, not str"),
    ],
)
def test_example_inputs_that_do_not_fit_are_named(
    inputs: Any, reason: str, module: GraphModule, tmp_path: Path
) -> None:
    with pytest.raises(LoweringError, match=reason):
        export_onnx(module, tmp_path / "a.onnx", inputs)
    assert list(tmp_path.iterdir()) == []


def test_a_loader_is_no_setting_of_quantisation(module: GraphModule, images: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(QuantisationError, match=r"int8: must be a bnas.Int8, such as .*, not list"):
        export_onnx(module, tmp_path / "a.onnx", images, [(images[0], None)])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_module_without_a_graph_is_traced(images: list[Tensor], tmp_path: Path) -> None:
    net = Small().train()
    found = export_onnx(net, tmp_path / "a.onnx", images[0])
    assert found.fallback is None
    assert {"conv/Conv", "head/Gemm"} <= {node.name for node in onnx.load(found.path).graph.node}
    assert net.training


@pytest.mark.parametrize("place", ["missing/a.onnx", "folder"])
def test_path_that_cannot_be_written_is_named(
    place: str, module: GraphModule, images: list[Tensor], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    why = {"folder": "it is a folder", "missing/a.onnx": "there is no folder '.*missing'; create it first"}[place]
    with pytest.raises(OnnxWriteError, match=f"{place}: the ONNX file cannot be written: {why}") as caught:
        export_onnx(module, tmp_path / place, images)
    assert isinstance(caught.value, BnasError)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_full_disk_keeps_the_former_file(
    module: GraphModule, images: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    export_onnx(module, tmp_path / "a.onnx", images, metadata={"which": "former"})
    former = (tmp_path / "a.onnx").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OnnxWriteError, match="No space left"):
        export_onnx(module, tmp_path / "a.onnx", images)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a.onnx", former)]


def test_interruption_leaves_nothing_behind(
    module: GraphModule, images: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(module, tmp_path / "a.onnx", images)
    assert list(tmp_path.iterdir()) == []


def test_file_has_the_usual_permissions(module: GraphModule, images: list[Tensor], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = export_onnx(module, tmp_path / "a.onnx", images).path
    assert path.stat().st_mode == plain.stat().st_mode


def test_indices_and_double_precision(tmp_path: Path) -> None:
    module = symbolic_trace(lambda index, x: F.embedding(index, torch.eye(4, dtype=torch.float64)) * x)
    inputs = [torch.tensor([[0, 3], [2, 1]]), torch.rand(2, 2, 4, dtype=torch.float64)]
    assert export_onnx(module, tmp_path / "a.onnx", inputs).max_relative_error == 0


def test_dtype_that_cannot_be_run_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"in bfloat16.*export model.float\(\)"):
        export_onnx(symbolic_trace(lambda x: x + 1), tmp_path / "a.onnx", [torch.rand(2, 3).bfloat16()])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SessionError, match=r"x: torch\.bfloat16 cannot be passed"):
        as_array("x", torch.zeros(1, dtype=torch.bfloat16))


class Sized(nn.Module):
    """Returns a number beside a tensor."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"scores": x.relu(), "width": x.shape[1]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::bnas.runtime.OnnxFallbackWarning")
def test_a_number_among_the_outputs_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LoweringError, match=r"width: 3 is not a tensor, but an ONNX model returns only tensors: convert it"
    ):
        export_onnx(Sized(), tmp_path / "a.onnx", torch.rand(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_trial_inputs_have_two_batch_sizes_and_stay_in_range() -> None:
    images, index = torch.rand(4, 100) * 2 + 10, torch.tensor([3, 5, 7, 7])
    example, other = trial_inputs([images, index, torch.tensor(2.0)])
    assert [one.shape[:1] for one in example] == [(4,), (4,), ()]
    assert [one.shape[:1] for one in other] == [(2,), (2,), ()]
    assert float(other[0].mean()) == pytest.approx(11, abs=0.5)
    assert set(other[1].tolist()) <= {3, 5, 7}
    assert len(trial_inputs([torch.rand(2, 3)])[1][0]) == 3
    assert len(trial_inputs([torch.tensor(2.0)])) == 1
    mask = torch.tensor([[0.0, -float("inf")]])
    assert trial_inputs([mask])[1][0].tolist() == mask.tolist() * 2


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.5], 0.2, id="relative-to-the-largest"),
        pytest.param([1e-7], [0.0], 0.1, id="near-zero"),
        pytest.param([np.nan, 1.0], [np.nan, 1.0], 0.0, id="same-nan"),
        pytest.param([np.nan, 1.0], [0.0, 1.0], np.inf, id="new-nan"),
        pytest.param([np.inf], [-np.inf], np.inf, id="other-infinity"),
        pytest.param([1.0], [[1.0]], np.inf, id="shape"),
        pytest.param([], [], 0.0, id="empty"),
    ],
)
def test_relative_error(found: Any, expected: Any, error: float) -> None:
    assert relative_error(np.array(found), np.array(expected)) == pytest.approx(error)


def test_relative_error_of_another_dtype_is_infinite() -> None:
    assert relative_error(np.zeros(1, np.float32), np.zeros(1)) == np.inf


def test_smallest_is_what_near_zero_counts_as() -> None:
    assert trial.SMALLEST == 1e-6


class Forms(nn.Module):
    """Returns what has many forms, and has an output of the name of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y = self.layer(x) * scale
        return {"x": y, "loss": None, "mean": y.mean(), "states": (x, [None, y + 1])}


def test_outputs_of_any_form_come_back(tmp_path: Path) -> None:
    net, inputs = Forms().eval(), {"scale": torch.randn(2, 1), "x": torch.randn(2, 8)}
    report = export_onnx(net, tmp_path / "a.onnx", inputs)
    assert report.fallback is None
    found = OnnxModule(tmp_path / "a.onnx")(inputs["x"], inputs["scale"])
    with torch.no_grad():
        expected = net(**inputs)
    assert (found["loss"], found["states"][1][0]) == (None, None)
    torch.testing.assert_close(found["x"], expected["x"])
    torch.testing.assert_close(found["mean"], expected["mean"])
    torch.testing.assert_close(found["states"][1][1], expected["states"][1][1])


def test_inputs_without_a_common_batch(tmp_path: Path) -> None:
    net = symbolic_trace(lambda x, table: x @ table.T + table.sum()).eval()
    net.meta["dynamic"] = {"x": {0: "batch"}, "table": {0: "rows"}}
    assert export_onnx(net, tmp_path / "a.onnx", (torch.randn(2, 8), torch.randn(5, 8))).fallback is None


def images_of_any_size() -> GraphModule:
    net = symbolic_trace(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ).eval()
    net.meta["dynamic"] = {"input": {0: "batch", 2: "height", 3: "width"}}
    return net


def test_a_file_of_images_of_any_size_and_its_int8_one(tmp_path: Path) -> None:
    calibration = [(torch.randn(4, 3, side, side), torch.zeros(4, dtype=torch.long)) for side in (16, 20)]
    report = export_onnx(images_of_any_size(), tmp_path / "a.onnx", torch.randn(2, 3, 16, 16), Int8(calibration))
    assert report.int8 is not None
    assert OnnxModule(tmp_path / "a.onnx")(torch.randn(5, 3, 9, 30)).shape == (5, 4)


def test_trials_have_other_sizes_that_the_model_takes() -> None:
    dims = [{0: "batch", 1: "length"}, {0: "batch", 1: "length"}]
    ids, mask = torch.tensor([[5, 6, 7, 7]]), torch.ones(1, 4)
    even = trial_inputs([ids, mask], dims, lambda inputs: inputs[0].shape[1] % 2 == 0)
    assert [tuple(one[0].shape) for one in even] == [(1, 4), (2, 2), (2, 8)]
    assert all(one[0].shape == one[1].shape and set(one[0].unique().tolist()) <= {5, 6, 7} for one in even)


def test_a_file_that_is_right_for_the_examples_only_is_refused(tmp_path: Path, change: Callable[..., Any]) -> None:
    change(torch.add, onnx=lambda site: site.name(site.x))  # right where nothing is added
    net = symbolic_trace(lambda x: x + (x.size(1) - 4)).eval()
    net.meta["dynamic"] = {"x": {0: "batch", 1: "length"}}
    with pytest.raises(LoweringError, match="relative error"):
        export_onnx(net, tmp_path / "a.onnx", torch.randn(2, 4))


class Positions(nn.Module):
    """A table limits the length, which the captured graph does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.places = nn.Linear(4, 6), nn.Parameter(torch.randn(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.places[: x.shape[1]]


def test_sizes_that_the_model_refuses_are_tried_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supernet = SuperNetwork.from_model(Positions(), torch.randn(2, 8, 4), dynamic={"x": {1: "length"}})
    part = supernet.extract(supernet.space.maximal())
    export_onnx(part, tmp_path / "places.onnx", torch.randn(2, 8, 4))
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        part(torch.randn(2, 9, 4))
    assert capfd.readouterr() == ("", "")
    assert "layer + getitem" in str(caught.traceback[-1].statement)  # the line of the graph that failed


class Scaled(nn.Module):
    """Divides by nothing where the image has one row, as coordinates between -1 and 1 do."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone() * ((x.shape[2] - 1) / torch.full((1,), x.shape[2] - 1.0))


def test_sizes_that_give_no_numbers_are_left_out() -> None:
    shapes = [
        tuple(one[0].shape) for one in trial_inputs([torch.randn(1, 2, 2)], [{2: "width"}], partial(fits, Scaled()))
    ]
    assert (1, 2, 1) in [tuple(one[0].shape) for one in trial_inputs([torch.randn(1, 2, 2)], [{2: "width"}])]
    assert (1, 2, 1) not in shapes
    assert len(shapes) == 3


def test_half_precision_has_a_bound_of_its_own(tmp_path: Path) -> None:
    net = symbolic_trace(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))).half().eval()
    assert export_onnx(net, tmp_path / "a.onnx", torch.randn(2, 64).half()).max_relative_error < 1e-2


class Cancelling(nn.Module):
    """Scores that are the small difference of large numbers: how they round depends on the order of a sum."""

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(3, size, generator=generator)
        self.head = nn.Linear(2 * size, 3)
        self.head.weight = nn.Parameter(torch.cat([half, -half], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([100 * x, 100 * x + 0.001 * x.tanh()], dim=1))  # type: ignore[no-any-return]


def test_what_pytorch_rounds_as_much_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = Cancelling().eval(), torch.randn(2, 4096, generator=torch.Generator().manual_seed(1))
    found = export_onnx(module, tmp_path / "a.onnx", images).max_relative_error
    assert found > 1e-4, "else this test says nothing"
    monkeypatch.setattr(trial, "ROUNDING", 0.0)
    with pytest.raises(LoweringError, match="above the bound"):
        export_onnx(module, tmp_path / "b.onnx", images)


def test_an_error_above_the_rounding_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, images = Cancelling().eval(), torch.randn(2, 4096, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(trial, "run_session", lambda *_: [module(images).detach().numpy() * 1.5])
    with pytest.raises(LoweringError, match="above the bound"):
        export_onnx(module, tmp_path / "a.onnx", images)
    assert not (tmp_path / "a.onnx").exists()
