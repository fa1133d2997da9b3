"""Data, criteria and metrics that do not work, wherever they enter: refused by name, and their healthy twins work.

Nothing is used silently, and nothing ends in an error that is not ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from training_cases import batches, plain, same, supernet, tensors

from bnas.passes import BnasError
from bnas.run import Job, Splits, run_job
from bnas.runtime import (
    BatchError,
    CheckpointError,
    EvaluationError,
    Evaluator,
    Int8,
    Stage,
    SuperNetwork,
    Trainer,
    TrainingError,
    accuracy,
    evaluate_onnx,
    export_onnx,
    recalibrate,
)
from bnas.runtime.evaluate.together import Bar
from bnas.runtime.feed import drawn

GOOD = batches(3)
EXAMPLE = torch.zeros(2, 1, 4, 4)


def fitted(data: Any, validation: Any = None, **changes: Any) -> float:
    return (
        Trainer(supernet(), [Stage(bn_adapt="num_bn_adaptation_samples" in changes)], plain(**changes))
        .fit(data, validation)[0]
        .loss
    )


def evaluated(calibration: Any, validation: Any, together: bool = False, **options: Any) -> Any:
    net = supernet()
    evaluator = Evaluator(net, calibration, validation, **options)
    if not together:
        return evaluator.evaluate(net.space.maximal())["accuracy"]
    ends = [net.space.maximal(), net.space.minimal()]
    for one in evaluator.evaluate_many(ends):
        if isinstance(one, Exception):
            raise one
    return None


def raced(validation: Any) -> None:
    net = supernet()
    best = net.space.maximal()
    Evaluator(net, GOOD, validation).evaluate_many([best], {best: Bar(0.9)})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    net, path = supernet(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    module = net.extract(net.space.maximal())
    export_onnx(module, path, EXAMPLE)
    return module, path


# Where data enter.

TRAINING: dict[str, Callable[[Any], Any]] = {
    "training": fitted,
    "several batches a step": lambda data: fitted(data, accumulate=2),
    "the fastest layout": lambda data: fitted(data, memory_format="auto"),
    "adapted statistics": lambda data: fitted(data, num_bn_adaptation_samples=20),
}
EVALUATION: dict[str, Callable[[Any], Any]] = {
    "validation of a training": lambda data: fitted(GOOD, data),
    "validation": lambda data: evaluated(GOOD, data),
    "validation together": lambda data: evaluated(GOOD, data, together=True),
    "accuracy": lambda data: accuracy(supernet().model, data),
}
CALIBRATION: dict[str, Callable[[Any], Any]] = {
    "calibration": lambda data: evaluated(data, GOOD),
    "recalibrate": lambda data: recalibrate(supernet().model, data),
}


def second(change: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    """Three batches, the second of which is changed."""
    return [GOOD[0], change(*GOOD[1]), GOOD[2]]


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "three items": (lambda x, y: (x, y, y), "must be a pair .* returned 3 entries: put several inputs into a tuple"),
    "one item": (lambda x, y: (x,), "returned 1 entries"),
    "no pair": (lambda x, y: x, "returned a Tensor"),
    "nothing": (lambda x, y: None, "returned a NoneType"),
    "no samples": (lambda x, y: (x[:0], y[:0]), r"\(0, 1, 4, 4\) float32, .*it is empty: make the loader skip it"),
    "no tensor": (lambda x, y: (x.numpy(), y), "inputs ndarray, .*no input is a tensor: make the transform"),
    "text": (lambda x, y: ("a", "b"), "inputs str, .*no input is a tensor"),
    "labels alone": (lambda x, y: {"labels": y}, "no input is a tensor"),
    "no batch axis": (
        lambda x, y: (x.mean(), y),
        r"inputs \(\) float32, .*its first input has no batch axis: make the collate_fn",
    ),
    "no numbers": (lambda x, y: (x.to("meta"), y), "meta device"),
}
"""What no model could take: refused before anything runs."""

MISFITS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "bytes": (lambda x, y: (x.to(torch.uint8), y), r"uint8 .*computes in float32: .* images.float\(\) / 255"),
    "double": (lambda x, y: (x.double(), y), "float64 .*computes in float32: make the transform return that type$"),
    "whole numbers": (lambda x, y: (x.long(), y), "int64 .*computes in float32"),
    "half": (lambda x, y: (x.half(), y), "float16 .*computes in float32"),
    "a wrong name": (lambda x, y: {"image": x, "labels": y}, r"\{image: .*'image'. In a dict, inputs have the names"),
    "too many": (lambda x, y: ((x, x), y), r"\(\(8, 1, 4, 4\) float32, \(8, 1, 4, 4\) float32\)"),
    "channels": (lambda x, y: (x.repeat(1, 3, 1, 1), y), r"\(8, 3, 4, 4\) float32"),
    "axes": (lambda x, y: (x[:, :, 0], y), r"\(8, 1, 4\) float32"),
}
"""What the model does not take."""

TARGETS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "too few": (lambda x, y: (x, y[:3]), r"\(3,\) int64: .*8 outputs but 3 targets"),
    "too few inputs": (lambda x, y: (x[:3], y), r"\(8,\) int64: .*3 outputs but 8 targets"),
    "none": (lambda x, y: (x, None), "NoneType"),
    "a list": (lambda x, y: (x, y.tolist()), r"\(int, int"),
    "without axis": (lambda x, y: (x, y[0]), "8 outputs but no targets"),
    "as a column": (lambda x, y: (x, y[:, None]), r"class numbers must have the shape \(8,\), not \(8, 1\)"),
    "too large": (
        lambda x, y: (x, y + 5),
        "targets go from 5 to 7, but the model has outputs for the classes 0 to 2: number",
    ),
    "too many": (lambda x, y: (x, 2 * y), "targets go from 0 to 4, but .* 0 to 2: give the model an output for each"),
    "negative": (lambda x, y: (x, y - 1), "targets go from -1 to 1"),
}
"""What is no class number for the model: as a column, they used to give an accuracy above 1."""

FINE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"x": x, "labels": y},
    "bytes as class numbers": lambda x, y: (x, y.to(torch.uint8)),
    "one sample": lambda x, y: (x[:1], y[:1]),
    "a larger batch": lambda x, y: (x.repeat(2, 1, 1, 1), y.repeat(2)),
}

PLACES = TRAINING | EVALUATION | CALIBRATION


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FINE)
def test_healthy_twins_work(place: str, form: str) -> None:
    PLACES[place](second(FINE[form]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", FORMS)
def test_what_is_no_batch(place: str, kind: str) -> None:
    change, message = FORMS[kind]
    with pytest.raises(BatchError, match=rf"^batch 1 of the \w*\s?data.*{message}"):
        PLACES[place](second(change))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MISFITS)
def test_what_the_model_does_not_take(place: str, kind: str) -> None:
    change, message = MISFITS[kind]
    with pytest.raises(BnasError, match=f"batch 1.*{message}") as caught:
        PLACES[place](second(change))
    cause = caught.value.__cause__
    assert isinstance(caught.value, TrainingError | EvaluationError) or cause is None  # an InputError of the graph


@pytest.mark.parametrize("place", ["training", "validation of a training", "validation together", "accuracy"])
@pytest.mark.parametrize("kind", TARGETS)
def test_targets_that_are_no_class_numbers(place: str, kind: str) -> None:
    change, message = TARGETS[kind]
    with pytest.raises((TrainingError, EvaluationError), match=f"batch 1.*{message}"):
        PLACES[place](second(change))


@pytest.mark.parametrize("place", ["evaluate_onnx", "int8", "int8 validation"])
@pytest.mark.parametrize("kind", [*FORMS, "double", "channels"])
def test_onnx_files(exported: tuple[nn.Module, Path], tmp_path: Path, place: str, kind: str) -> None:
    module, path = exported

    def run(data: Any) -> Any:
        if place == "evaluate_onnx":
            return evaluate_onnx(path, data)
        int8 = Int8(data, samples=24) if place == "int8" else Int8(GOOD, validation=data)
        return export_onnx(module, tmp_path / "int8.onnx", EXAMPLE, int8)

    change, message = (FORMS | MISFITS)[kind]
    with pytest.raises(BnasError, match=f"batch 1.*{message.partition(' ')[0] if kind in FORMS else ''}"):
        run(second(change))
    assert not list(tmp_path.iterdir())
    run(GOOD)


def test_racing(exported: tuple[nn.Module, Path]) -> None:
    for change, _ in FORMS.values():
        with pytest.raises(BatchError, match="batch 1 of the validation data"):
            raced(second(change))
    raced(GOOD)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_run(tmp_path: Path, part: str) -> None:
    data = {"train": GOOD, "validation": GOOD, "test": GOOD, part: second(FORMS["no samples"][0])}
    recipe = plain(num_bn_adaptation_samples=8)
    job = Job(supernet().model, Splits(**data), EXAMPLE, stages=[Stage()], recipe=recipe, num_bn_adaptation_samples=8)
    with pytest.raises(BatchError, match=r"batch 1 of the \w*\s?data .*it is empty"):
        run_job(job, tmp_path / "run")


# Loaders.


class Says:
    """Says how many batches it has, and gives others."""

    def __init__(self, data: list[Any], length: int) -> None:
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


class Broken(Dataset[Any]):
    """One sample cannot be read."""

    def __init__(self, fault: type[Exception] = ValueError) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 24

    def __getitem__(self, place: int) -> Any:
        if place == 13:
            raise self.fault("sample 13")
        return torch.zeros(1, 4, 4), 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", [ValueError, KeyError, OSError, AssertionError])
def test_a_loader_that_fails(place: str, fault: type[Exception]) -> None:
    with pytest.raises(
        BatchError, match=f"^batch 1 of the .*data: the loader fails: {fault.__name__}: .?sample"
    ) as told:
        PLACES[place](DataLoader(Broken(fault), 8))
    assert type(told.value.__cause__) is fault


def test_a_loader_that_fails_in_a_worker() -> None:
    with pytest.raises(BatchError, match=r"batch 1 .*: in a worker process: ValueError: sample 13$"):
        fitted(DataLoader(Broken(), 8, num_workers=1))


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_what_a_loader_does_not_mean_stays(error: BaseException) -> None:
    def given() -> Iterator[Any]:
        yield GOOD[0]
        raise error

    with pytest.raises(type(error)):
        list(drawn(given()))


@pytest.mark.parametrize("place", TRAINING)
def test_a_loader_that_gives_less_than_it_says(place: str) -> None:
    for count in (0, 3):
        with pytest.raises(TrainingError, match=rf"the training loader gave {count} batches; its length says 10"):
            TRAINING[place](Says(GOOD[:count], 10))
    TRAINING[place](Says(GOOD, 2))


@pytest.mark.parametrize("loader", [None, 3])
@pytest.mark.parametrize("place", ["accuracy", "recalibrate", "validation"])
def test_what_is_no_loader(place: str, loader: Any) -> None:
    with pytest.raises(BatchError, match=f"must be batches of .* or a list, not {type(loader).__name__}"):
        PLACES[place](loader)


def test_no_validation_data() -> None:
    """It is said before the training, not after its first epoch."""
    steps: list[Any] = []
    trainer = Trainer(supernet(), [Stage()], plain(), on_step=steps.append)
    with pytest.raises(TrainingError, match="the validation loader is empty: pass validation=None"):
        trainer.fit(GOOD, [])
    assert not steps


def test_a_generator_is_kept_where_it_is_read_twice(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    net = supernet()
    evaluator = Evaluator(net, (one for one in GOOD), (one for one in GOOD))
    first, second = (evaluator.evaluate(net.space.maximal()) for _ in range(2))
    assert first == second == Evaluator(net, GOOD, GOOD).evaluate(net.space.maximal())
    report = export_onnx(exported[0], tmp_path / "a.onnx", EXAMPLE, Int8(GOOD, validation=(one for one in GOOD))).int8
    assert report is not None
    assert report.metric_fp32 is not None
    assert report.metric_int8 is not None
    calibration = Int8(one for one in GOOD)
    export_onnx(exported[0], tmp_path / "b.onnx", EXAMPLE, calibration)
    with pytest.raises(BnasError, match="an iterator, such as a generator, can be read only once"):
        export_onnx(exported[0], tmp_path / "c.onnx", EXAMPLE, calibration)


class Normed(nn.Module):
    """Of a single sample, its norm has one value of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc(x)).relu())


def test_a_batch_of_one_with_batch_norm() -> None:
    net = SuperNetwork.from_model(Normed(), torch.zeros(2, 4))
    data = TensorDataset(torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    trainer = Trainer(net, [Stage(("width",))], plain())
    with pytest.raises(TrainingError, match=r"batch 1\): .*\(1, 4\) float32 .*more than 1 value.*drop_last=True"):
        trainer.fit(DataLoader(data, 8))
    with pytest.raises(EvaluationError, match=r"batch 1 of the calibration data: .*\(1, 4\).*drop_last=True"):
        recalibrate(net.model, DataLoader(data, 8))
    trainer.fit(DataLoader(data, 8, drop_last=True))


# Criteria and metrics.


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda out, y: None, "returns NoneType: it must return a tensor with one number that has a gradient"),
        (lambda out, y: 0.5, "returns float"),
        (lambda out, y: (F.cross_entropy(out, y), {}), r"returns \(\(\) float32, \{\}\)"),
        (
            lambda out, y: F.cross_entropy(out, y, reduction="none"),
            r"returns a tensor of shape \(8,\): .* loss.mean\(\)",
        ),
        (lambda out, y: F.cross_entropy(out, y)[None], r"returns a tensor of shape \(1,\)"),
        (lambda out, y: (out.argmax(1) != y).sum(), r"returns \(\) int64: it must return a floating-point number"),
        (
            lambda out, y: F.cross_entropy(out.detach(), y),
            r"returns a number without a gradient: .*without \.detach\(\) or",
        ),
        (lambda out, y: {}["weights"], "the criterion fails on outputs .* and targets .*: KeyError: 'weights'"),
        (lambda out, y: F.cross_entropy(out, y.float()), "the criterion fails on outputs .*: RuntimeError"),
        (lambda out, y: F.cross_entropy(out, y) * float("nan"), "the loss is nan at step 0 .*, of sub-network"),
    ],
)
def test_a_criterion_that_gives_no_loss(criterion: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as told:
        Trainer(supernet(), [Stage()], plain(), criterion=criterion).fit(GOOD)
    assert "step 0 (epoch 0, batch 0)" in str(told.value)
    assert "fails" not in message or told.value.__cause__ is not None


def test_a_criterion_that_works() -> None:
    assert Trainer(supernet(), [Stage()], plain(), criterion=F.cross_entropy).fit(GOOD)[0].loss > 0


def test_numbers_of_epoch_and_batch() -> None:
    """The eighth call is for the last of four batches of the second epoch, in the second step of two batches."""
    calls: list[int] = []

    def criterion(out: Tensor, y: Tensor) -> Any:
        calls.append(len(y))
        return F.cross_entropy(out, y) if len(calls) < 8 else None

    recipe = plain(accumulate=2, rule="maximal", subnets_per_step=1)
    with pytest.raises(TrainingError, match=r"^step 3 \(epoch 1, batch 3\): the criterion"):
        Trainer(supernet(), [Stage(epochs=2)], recipe, criterion=criterion).fit(batches(4))


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (None, "returned None"),
        ("good", "returned 'good'"),
        (torch.zeros(3), r"returned \(3,\) float32"),
        ({"accuracy": 1.0}, r"returned \{'accuracy'"),
    ],
)
def test_a_metric_that_gives_no_number(exported: tuple[nn.Module, Path], value: Any, given: str) -> None:
    def quality(module: nn.Module, data: Any) -> Any:
        return value

    told = f"the metric 'quality' must return one number, such as 0.93; it {given}"
    with pytest.raises(EvaluationError, match=told):
        evaluated(GOOD, GOOD, metric=quality)
    with pytest.raises(EvaluationError, match=told):
        evaluated(GOOD, GOOD, metric=quality, together=True)
    with pytest.raises(EvaluationError, match=told):
        Trainer(supernet(), [Stage()], plain(), metric=quality).fit(GOOD, GOOD)
    with pytest.raises(EvaluationError, match=told):
        evaluate_onnx(exported[1], GOOD, quality)


@pytest.mark.parametrize("value", [0.5, 1, torch.tensor(0.5), torch.tensor([0.5])])
def test_a_metric_that_gives_a_number(value: Any) -> None:
    assert evaluated(GOOD, GOOD, metric=lambda module, data: value) == pytest.approx(float(value))


def test_what_is_not_finite() -> None:
    inf = second(lambda x, y: (x * float("inf"), y))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 .*NaN or inf in the data of batch 1\)"):
        fitted(inf)
    with pytest.raises(EvaluationError, match=r"batch 1 .*an output is NaN or inf, and so are the inputs"):
        accuracy(supernet().model, inf)
    diverged = supernet().model
    nn.init.constant_(next(diverged.parameters()), math.inf)
    with pytest.raises(EvaluationError, match=r"batch 0 .*NaN or inf\. If .* diverged: lower the learning rate"):
        accuracy(diverged, GOOD)


# A training that is resumed on other data.


def resumed(tmp_path: Path, before: Any, after: Any, **recipe: Any) -> dict[str, Tensor]:
    """A training that is stopped after its second step, and resumed."""

    def stop(progress: Any) -> None:
        if progress.step == 1:
            raise InterruptedError

    options: dict[str, Any] = {"directory": tmp_path, "checkpoint_every": 1}
    with pytest.raises(InterruptedError):
        Trainer(supernet(), [Stage(epochs=2)], plain(**recipe), **options, on_step=stop).fit(before)
    net = supernet()
    Trainer(net, [Stage(epochs=2)], plain(**recipe), **options).fit(after, resume=True)
    return tensors(net)


def loader(count: int, size: int = 8) -> DataLoader[Any]:
    images, labels = (torch.cat(column) for column in zip(*batches(5), strict=True))
    return DataLoader(TensorDataset(images[:count], labels[:count]), size, shuffle=True)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda: loader(38), r"has changed \(samples: 40 when it was saved, 38 now\); resume with the data"),
        (lambda: loader(40, 9), r"\(batch size: 8 when it was saved, 9 now\)"),
        (lambda: Says([one for one in batches(5, 7)], 5), r"\(samples: 40 when it was saved, unknown now\)"),
    ],
)
def test_a_loader_of_another_size(tmp_path: Path, after: Any, message: str) -> None:
    """All have five batches, as before."""
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, loader(40), after())


def test_a_loader_that_was_cut(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\(batches: 5 when it was saved, 4 now\)"):
        resumed(tmp_path, batches(5), batches(4), train_steps=24)


def test_a_loader_that_gives_other_batches(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="in epoch 0 it returned 1 batches with 8 samples before, and now 1 with 7"):
        resumed(tmp_path, batches(5), [*batches(1, 7), *batches(4)])


def test_the_same_loader(tmp_path: Path) -> None:
    def whole() -> SuperNetwork:
        net = supernet()
        Trainer(net, [Stage(epochs=2)], plain()).fit(loader(40))
        return net

    expected = tensors(whole())
    assert same(resumed(tmp_path, loader(40), loader(40)), expected)


def test_to_look_at_batches_costs_nothing() -> None:
    """20 microseconds for each at most: a step takes milliseconds."""
    data = GOOD * 1000
    start = time.process_time()
    assert sum(1 for _ in drawn(data)) == len(data)
    assert time.process_time() - start < 20e-6 * len(data)
