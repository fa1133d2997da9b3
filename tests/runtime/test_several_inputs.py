"""Data with several inputs: tuples, dicts, whole batches that are dicts, lengths that differ from batch to batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import bnas
from bnas.runtime import (
    EvaluationError,
    Int8,
    LatencyError,
    accuracy,
    evaluate_onnx,
    export_onnx,
    measure_latency,
    recalibrate,
)
from bnas.runtime.errors import BatchError, TrainingError
from bnas.runtime.evaluate.together import Bar, RacingError
from bnas.runtime.nested import as_batch, batch_size, scores_of
from bnas.runtime.onnx.int8 import QuantisationError
from bnas.runtime.onnx.session import OnnxModule, SessionError

STAGES = [bnas.Stage(epochs=1)]
RECIPE = bnas.Recipe(num_bn_adaptation_samples=8, memory_format="contiguous")


@dataclass
class Output:
    """As the output classes of libraries."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Text(nn.Module):
    """Two inputs, a batch norm, and scores in an output of one of several forms."""

    def __init__(self, form: str = "plain") -> None:
        super().__init__()
        self.form = form
        self.words, self.inner = nn.Embedding(20, 16), nn.Linear(16, 24)
        self.norm, self.outer, self.head = nn.BatchNorm1d(24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        x, mask = self.words(input_ids), attention_mask.unsqueeze(-1).float()
        x = x + self.outer(self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2).relu())
        scores = self.head((x * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        if self.form == "dict":
            return {"hidden": x, "logits": scores}
        if self.form == "class":
            return Output(loss, scores)
        return (scores, loss) if self.form == "tuple" else scores


def parts(count: int = 4, fixed: int | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator, made = torch.Generator().manual_seed(0), []
    for number in range(count):
        ids = torch.randint(1, 20, (4, fixed or 6 + number), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        made.append((ids, mask, ids[:, 0] % 3))
    return made


FORMS: dict[str, Any] = {
    "tuple": lambda ids, mask, labels: ((ids, mask), labels),
    "list": lambda ids, mask, labels: [[ids, mask], labels],
    "dict": lambda ids, mask, labels: ({"attention_mask": mask, "input_ids": ids}, labels),
    "batch": lambda ids, mask, labels: {"labels": labels, "input_ids": ids, "attention_mask": mask},
    "label": lambda ids, mask, labels: {"input_ids": ids, "attention_mask": mask, "label": labels},
}


def loader(form: str, **settings: Any) -> list[Any]:
    return [FORMS[form](*one) for one in parts(**settings)]


def supernet(form: str = "plain", *, labels: bool = False) -> bnas.SuperNetwork:
    torch.manual_seed(0)
    ids, mask, targets = parts(1)[0]
    example = {"input_ids": ids, "attention_mask": mask, **({"labels": targets} if labels else {})}
    return bnas.SuperNetwork.from_model(Text(form).eval(), example)


@pytest.mark.parametrize("form", FORMS)
def test_training_and_evaluation_are_the_same_whatever_a_batch_is(form: str) -> None:
    def trained(batches: list[Any]) -> tuple[Any, ...]:
        made = supernet()
        assert {1: "length"}.items() <= made.dynamic["input_ids"].items()
        history = bnas.Trainer(made, STAGES, RECIPE).fit(batches, batches)
        return history[0].loss, dict(history[0].metrics), made.fingerprint()

    assert trained(loader(form)) == trained(loader("tuple"))


@pytest.mark.parametrize("form", FORMS)
def test_many_sub_networks_together_are_measured_as_alone(form: str) -> None:
    made, batches = supernet(), loader(form)
    evaluator = bnas.Evaluator(made, batches[:2], batches)
    rng = np.random.default_rng(0)
    subnets = [made.space.maximal(), made.space.minimal(), *(made.space.sample(rng) for _ in range(3))]
    alone = [evaluator.evaluate(one) for one in subnets]
    assert evaluator.evaluate_many(subnets) == alone
    plain = bnas.Evaluator(made, loader("tuple")[:2], loader("tuple"))
    assert [plain.evaluate(one) for one in subnets] == alone


def test_outputs_are_known_by_the_inputs_of_a_dict() -> None:
    made = supernet()
    calls = []

    def counted(module: nn.Module, batches: Any) -> float:
        module.module.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
        return accuracy(module, batches)

    evaluator = bnas.Evaluator(made, None, loader("batch"), counted)
    found = evaluator.evaluate_many([made.space.maximal(), made.space.minimal()])
    assert all(isinstance(one, dict) for one in found)
    assert not calls


@pytest.mark.parametrize("form", ["plain", "dict", "class", "tuple"])
def test_scores_are_found_in_the_outputs(form: str) -> None:
    made, model = supernet(form), Text(form).eval()
    module, right = made.extract(made.space.maximal()), 0
    for ids, mask, labels in parts():
        right += int((scores_of(made.model(ids, mask)).argmax(1) == labels).sum())
    assert accuracy(module, loader("batch")) == right / 16
    assert accuracy(made.model, loader("batch")) == right / 16
    assert 0 <= accuracy(model, loader("tuple")) <= 1
    history = bnas.Trainer(made, STAGES, RECIPE).fit(loader("batch"), loader("batch"))
    assert np.isfinite(history[0].loss)


def test_targets_that_the_model_takes_are_inputs_too() -> None:
    made = supernet("tuple", labels=True)
    history = bnas.Trainer(made, STAGES, RECIPE).fit(loader("batch"), loader("batch"))
    assert np.isfinite(history[0].loss)
    assert 0 <= bnas.Evaluator(made, None, loader("batch")).evaluate(made.space.minimal())["accuracy"] <= 1


def test_statistics_are_recalibrated_on_dicts() -> None:
    made = supernet()
    first, second = (made.extract(made.space.maximal()) for _ in range(2))
    recalibrate(first, loader("batch"))
    recalibrate(second, loader("tuple"))
    norm = first.get_submodule("norm")
    assert not torch.equal(norm.running_mean, made.model.norm.running_mean)  # type: ignore[arg-type, union-attr]
    assert torch.equal(norm.running_mean, second.get_submodule("norm").running_mean)  # type: ignore[arg-type]


def test_search_trains_and_evaluates_dicts() -> None:
    made = supernet()
    evaluator = bnas.Evaluator(made, loader("batch"), loader("batch"))
    objectives = [bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min")]
    result = bnas.Searcher(
        made, evaluator, objectives, bnas.SearchSettings(algorithm=bnas.NSGA2(population=4), num_evals=6)
    ).run()
    assert len(result.evaluations) == 6


def test_racing_needs_one_length() -> None:
    made = supernet()
    subnets = [made.space.maximal(), made.space.minimal()]
    same = bnas.Evaluator(made, None, loader("batch", fixed=6))
    raced = same.evaluate_many(subnets, {subnets[1]: Bar(0.0)})
    assert [one["accuracy"] for one in raced] == [same.evaluate(one)["accuracy"] for one in subnets]  # type: ignore[index]
    with pytest.raises(RacingError, match="batches have different lengths: pad all of them to one length"):
        bnas.Evaluator(made, None, loader("batch")).evaluate_many(subnets, {subnets[1]: Bar(0.0)})


@pytest.mark.parametrize("form", FORMS)
def test_onnx_files_are_measured_and_quantised(form: str, tmp_path: Path) -> None:
    made, batches = supernet(), loader(form)
    module = made.extract(made.space.maximal())
    example = made.example_inputs
    report = export_onnx(module, tmp_path / "a.onnx", example, Int8(batches, validation=batches, activations="static"))
    assert report.int8 is not None
    assert report.int8.samples == 16
    assert report.int8.metric_fp32 == accuracy(module, batches)
    assert any("inner" in name for name in report.int8.layers)
    export_onnx(module, tmp_path / "b.onnx", example)
    assert evaluate_onnx(tmp_path / "b.onnx", batches) == accuracy(module, batches)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    for length in (5, 17):
        ids = np.ones((2, length), np.int64)
        (scores,) = session.run(None, {"input_ids": ids, "attention_mask": ids})
        assert scores.shape == (2, 3)


def test_an_onnx_model_takes_keyword_inputs(tmp_path: Path) -> None:
    made = supernet()
    export_onnx(made.extract(made.space.maximal()), tmp_path / "a.onnx", made.example_inputs)
    module, (ids, mask, _) = OnnxModule(tmp_path / "a.onnx"), parts(1)[0]
    torch.testing.assert_close(module(ids, attention_mask=mask), module(ids, mask))
    torch.testing.assert_close(module(attention_mask=mask, input_ids=ids), module(ids, mask))
    with pytest.raises(SessionError, match="takes the inputs input_ids, attention_mask but got input_ids, mask"):
        module(ids, mask=mask)


def test_latency_at_given_sizes_makes_indices_up() -> None:
    made = supernet()
    found = measure_latency(
        {"all": made.space.maximal(), "least": made.space.minimal()},
        supernet=made,
        sizes={"length": 64},
        runs=2,
        warmup=1,
        batch=2,
    )
    assert all(one.median_ms > 0 and one.batch == 2 for one in found.values())


def test_a_latency_model_is_fitted_at_given_sizes(tmp_path: Path) -> None:
    made = supernet()
    model = bnas.LatencyModel.fit(made, subnets=8, runs=2, sizes={"length": 48})
    assert model.settings.sizes == {"length": 48}
    model.save(tmp_path / "latency.json")
    assert bnas.LatencyModel.load(tmp_path / "latency.json", made).settings == model.settings
    with pytest.raises(LatencyError, match="there is no dynamic axis 'lenght'; there are batch, length"):
        measure_latency(made.space.minimal(), supernet=made, sizes={"lenght": 48})


def test_a_list_of_tensors_goes_to_onnx(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(32, 3)

        def forward(self, features: list[Tensor]) -> Tensor:
            return self.last(torch.cat([self.first(one).relu() for one in features], 1))

    example = ([torch.randn(2, 6), torch.randn(2, 6)],)
    made = bnas.SuperNetwork.from_model(Joined().eval(), example)
    for place, given in enumerate((example, [list(example[0])], {"features": tuple(example[0])})):
        module = made.extract(made.space.minimal())
        report = export_onnx(module, tmp_path / f"{place}.onnx", given)
        assert report.fallback is None
        again = OnnxModule(tmp_path / f"{place}.onnx")
        torch.testing.assert_close(again(example[0]), module(example[0]), rtol=1e-4, atol=1e-5)
    pairs = [([example[0]], torch.tensor([0, 1]))]
    assert evaluate_onnx(tmp_path / "0.onnx", pairs) == accuracy(module, pairs)


def test_batches_are_read() -> None:
    x, y = torch.zeros(3, 2), torch.zeros(3)
    assert as_batch((x, y)) == (x, y)
    assert as_batch([x, y]) == (x, y)
    assert as_batch({"x": x, "targets": y}) == ({"x": x}, y)
    assert as_batch({"x": x, "target": y, "label": y}) == ({"x": x, "target": y}, y)
    assert as_batch({"x": x, "labels": y}, {"x", "labels"}) == ({"x": x, "labels": y}, y)
    assert as_batch({"x": x}) == ({"x": x}, None)
    assert batch_size({"x": x, "labels": y}) == batch_size(([x, x], y)) == batch_size(([[x]], y)) == 3
    for wrong, told in (((x, x, y), "3 entries"), (x, "a Tensor"), (3, "a int")):
        with pytest.raises(BatchError, match=f"the loader returned {told}"):
            as_batch(wrong)


def test_what_a_batch_lacks_is_told() -> None:
    made = supernet()
    ids, mask, labels = parts(1)[0]
    unknown = [{"input_ids": ids, "attention_mask": mask, "answers": labels}]
    with pytest.raises(TrainingError, match="does not fit the model"):
        bnas.Trainer(made, STAGES, bnas.Recipe(num_bn_adaptation_samples=0)).fit(unknown)
    without = [{"input_ids": ids, "attention_mask": mask}]
    with pytest.raises(TrainingError, match="needs targets: in a batch that is a dict, give them the key 'labels'"):
        bnas.Trainer(made, STAGES, bnas.Recipe(num_bn_adaptation_samples=0)).fit(without)
    with pytest.raises(EvaluationError, match="needs class numbers as targets, but the batch has NoneType"):
        accuracy(made.model, without)
    with pytest.raises(QuantisationError, match="samples have the shapes"):
        export_onnx(made.model, Path("never.onnx"), (ids, mask), Int8(unknown, activations="static"))
    assert not Path("never.onnx").exists()
