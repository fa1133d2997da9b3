"""The distillation loss, against its formula written out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bnas.runtime import Distillation, TrainingError


def by_hand(student: Tensor, teacher: Tensor, temperature: float, scale: float) -> float:
    """``scale * -(log_softmax(s/T) * softmax(t/T)).mean() * C * T^2``, number by number."""
    total = 0.0
    rows, classes = student.shape
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value / temperature) for value in s))
        weights = [math.exp(value / temperature) for value in t]
        for mine, weight in zip(s, weights, strict=True):
            total -= (mine / temperature - log_sum) * weight / sum(weights)
    return scale * total / (rows * classes) * classes * temperature**2


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 4),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_softmax(seed: int, rows: int, classes: int, temperature: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator)
    loss = Distillation(scale=scale, temperature=temperature).loss(student, teacher)
    expected = by_hand(student, teacher, temperature, scale)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    wrong = [by_hand(teacher, student, temperature, scale), by_hand(student, teacher, temperature + 1, scale)]
    assert all(abs(one - expected) > 1e-4 * abs(expected) for one in wrong)


def test_gradients_keep_their_size_at_a_high_temperature() -> None:
    teacher = torch.randn(4, 5)
    sizes = []
    for temperature in (20.0, 40.0):
        student = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        Distillation(temperature=temperature).loss(student, teacher).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_mse() -> None:
    student, teacher = torch.randn(2, 3, 4)
    loss = Distillation(type="mse", scale=2.0).loss(student, teacher)
    squares = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert float(loss) == pytest.approx(2 * sum(squares) / 12, rel=1e-5)
    assert float(loss) != pytest.approx(2 * sum(squares), rel=1e-2)


def test_nested_outputs_are_matched_by_place_and_summed() -> None:
    first, second, third, fourth = torch.randn(4, 2, 3)
    student = {"a": first, "rest": (second, torch.tensor([1, 2]))}
    teacher = {"rest": (fourth, torch.tensor([7, 8])), "a": third}
    mse = Distillation(type="mse")
    expected = mse.loss(first, third) + mse.loss(second, fourth)
    torch.testing.assert_close(mse.loss(student, teacher), expected)
    assert not torch.allclose(mse.loss(first, fourth) + mse.loss(second, third), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"output has shape \(2, 3\) and the teacher's \(2, 4\)"),
        ({"a": (torch.zeros(2, 3),)}, {"a": (torch.zeros(3),)}, r"output\['a'\]\[0\] has shape \(2, 3\)"),
        ({"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, r"output\['a'\] is not among"),
        ((torch.zeros(2, 3),), (torch.zeros(2, 3), torch.zeros(2, 3)), r"output\[1\] is not among"),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), "no floating-point tensor"),
    ],
)
def test_outputs_that_do_not_fit_name_the_place(student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Distillation().loss(student, teacher)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_numbers_that_are_no_class_scores_are_compared_by_their_squared_error(shape: tuple[int, ...]) -> None:
    """Their softmax is 1 whatever they are: nothing would be learned."""
    student, teacher = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(Distillation().loss(student, teacher), torch.nn.functional.mse_loss(student, teacher))
    scores = torch.randn(4, 2), torch.randn(4, 2)
    assert not torch.allclose(Distillation().loss(*scores), torch.nn.functional.mse_loss(*scores))


def test_outputs_with_names_are_outputs() -> None:
    """Such as those of torchvision's GoogLeNet (a named tuple)."""
    from collections import namedtuple

    Pair = namedtuple("Pair", "logits aux")
    one, two = torch.randn(2, 2, 3)
    mse = Distillation(type="mse")
    torch.testing.assert_close(mse.loss(Pair(one, two), Pair(two, two)), mse.loss(one, two))
    with pytest.raises(TrainingError, match="no floating-point tensor"):
        mse.loss(SimpleNamespace(), SimpleNamespace())


def test_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    Distillation().loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "me"}, "teacher is 'me': must be 'maximal' or 'original'"),
        ({"type": "kl"}, "type is 'kl': must be 'softmax' or 'mse'"),
        ({"scale": 0.0}, "scale is 0.0: must be greater than 0"),
        ({"scale": -1.0}, "scale is -1.0: must be greater than 0"),
        ({"hard": -1.0}, "hard is -1.0: must be greater than or equal to 0"),
        ({"temperature": 0.0}, "temperature is 0.0: must be greater than 0"),
        ({"type": "mse", "temperature": 2.0}, "temperature is only for the type softmax"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Distillation(**settings)


def test_bounds_of_settings() -> None:
    assert Distillation("original", hard=0.0, type="mse", temperature=1.0).hard == 0
