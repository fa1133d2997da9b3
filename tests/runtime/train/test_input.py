"""What data and optimizers that do not fit get; and data of other forms that fits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_cases import batches, plain, same, supernet, tensors

from bnas.runtime import Distillation, Recipe, Stage, SuperNetwork, Trainer, TrainingError, recalibrate
from bnas.runtime.evaluate.evaluation import Batch, accuracy, first_samples, spread_samples


def refused(loader: Any, message: str, **options: Any) -> None:
    """Training on `loader` fails with `message`, and the network is in the mode it was in."""
    net = supernet()
    with pytest.raises(TrainingError, match=message):
        Trainer(net, [Stage()], plain(**options)).fit(loader)
    assert not net.training


class Short:
    """Says five batches and gives three."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        return iter(batches(3))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_loaders(options: dict[str, Any]) -> None:
    refused([], "the training loader is empty", **options)
    refused(iter(batches()), "is an iterator, which can be read only once", **options)
    refused(Short(), "the training loader gave 3 batches; its length says 5", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x[:, :, :, 0], y),
            r"step 1 \(epoch 0, batch 1\): a batch of inputs \(8, 1, 4\) float32 does not fit the model, which",
        ),
        (lambda x, y: (x.repeat(1, 3, 1, 1), y), r"\(8, 3, 4, 4\) float32 does not fit .* traced with \(2, 1, 4, 4\)"),
        (lambda x, y: (x.double(), y), r"\(8, 1, 4, 4\) float64 does not fit"),
        (lambda x, y: ((x, x), y), r"inputs \(\(8, 1, 4, 4\) float32, \(8, 1, 4, 4\) float32\) does not fit"),
        (lambda x, y: ({"image": x}, y), r"inputs \{image: \(8, 1, 4, 4\) float32\} does not fit"),
        (
            lambda x, y: (x, y[:3]),
            r"step 1 \(epoch 0, batch 1\): the criterion fails on outputs \(8, 3\) float32 and targets \(3,\) int64",
        ),
        (lambda x, y: (x, y + 5), r"step 1 \(epoch 0, batch 1\): the criterion fails"),
        (lambda x, y: (x, {"a": y}), r"targets \{a: \(8,\) int64\}"),
        (
            lambda x, y: (x * float("inf"), y),
            r"the loss is nan at step 1 \(epoch 0, batch 1\), of sub-network \{'widths'",
        ),
    ],
)
def test_batches_that_do_not_fit(change: Any, message: str) -> None:
    data = batches(2)
    refused([data[0], change(*data[1])], message)
    Trainer(supernet(), [Stage()], plain()).fit(data)


class Named(nn.Module):
    """Returns a dict, as torchvision's models of segmentation do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(x).flatten(1)}


def test_outputs_that_are_no_tensor_need_a_criterion() -> None:
    net = SuperNetwork.from_model(Named(), torch.zeros(1, 1, 4, 4))
    stages, data = [Stage(("width",))], batches(2)
    with pytest.raises(TrainingError, match=r"outputs {out: \(8, 3\) float32} and .*; pass your own criterion"):
        Trainer(net, stages, plain()).fit(data)
    trainer = Trainer(net, stages, plain(), criterion=lambda outputs, y: F.cross_entropy(outputs["out"], y))
    assert trainer.fit(data)[0].loss > 0


def test_optimizer_of_other_parameters() -> None:
    for optimizer in (
        torch.optim.SGD(supernet(seed=1).parameters(), 0.1),
        lambda own: torch.optim.SGD([*own, nn.Parameter(torch.zeros(1))], 0.1),
    ):
        with pytest.raises(TrainingError, match=r"holds tensors that are not in supernet.parameters\(\)"):
            Trainer(supernet(), [Stage()], plain(), optimizer=optimizer).fit(batches())


class Wide(nn.Module):
    """A convolution whose kernel of 5 may be 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 5, padding=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_optimizer_without_kernel_matrices_warns() -> None:
    net = SuperNetwork.from_model(Wide(), torch.zeros(2, 1, 4, 4))
    assert list(net.kernel_matrices.parameters())
    before = tensors(net)
    trainer = Trainer(net, [Stage()], plain(), optimizer=torch.optim.SGD(net.model.parameters(), 0.1))
    with pytest.warns(UserWarning, match="does not hold the matrices of elastic kernels"):
        trainer.fit(batches(4))
    matrices = [name for name in before if name.startswith("kernel_matrices")]
    assert matrices
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in matrices)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(net, [Stage()], plain(), optimizer=torch.optim.SGD(net.parameters(), 0.1)).fit(batches(4))
    assert any(not torch.equal(before[name], net.state_dict()[name]) for name in matrices)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "all"}, "rule is 'all': must be 'random', 'maximal' or 'sandwich'"),
        ({"rule": "sandwich", "subnets_per_step": 1}, "subnets_per_step is 1: too few for the rule 'sandwich'"),
        ({"sampling": "even"}, "sampling is 'even': must be 'uniform', 'spread' or 'attentive'"),
        (
            {"rule": "random", "distillation": Distillation()},
            "the teacher is the maximal sub-network, which the rule 'random'",
        ),
        ({"precision": "float16"}, "precision is 'float16': must be 'float32' or 'bfloat16'"),
        ({"memory_format": "nhwc"}, "memory_format is 'nhwc': must be 'auto', 'contiguous' or 'channels_last'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: must be greater than 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0: must be greater than 0"),
        ({"accumulate": 0}, "accumulate is 0: must be greater than or equal to 1"),
        ({"train_steps": 0}, "train_steps is 0: must be greater than or equal to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: must be less than 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: must be less than 1"),
        ({"num_bn_adaptation_samples": -1}, "num_bn_adaptation_samples is -1: must be greater than or equal to 0"),
    ],
)
def test_recipe_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        plain(**settings)


class Two(nn.Module):
    """Two inputs, by name or by place."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(3, 16), nn.Linear(3, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.norm(self.left(a) + self.right(b)).relu())


@pytest.mark.parametrize("form", ["tuple", "dict", "list"])
def test_inputs_of_several_tensors_and_targets_by_name(form: str) -> None:
    """Through calibration too: 10 samples are a batch and two samples of the next."""

    def shaped(a: Tensor, b: Tensor) -> Any:
        return {"a": a, "b": b} if form == "dict" else [a, b] if form == "list" else (a, b)

    torch.manual_seed(0)
    example = shaped(torch.zeros(2, 3), torch.zeros(2, 3))
    net = SuperNetwork.from_model(Two(), tuple(example) if form == "list" else example)
    pairs = torch.randn(3, 2, 8, 3)
    data = [(shaped(*pair), {"class": torch.randint(3, (8,))}) for pair in pairs]
    trainer = Trainer(net, [Stage(bn_adapt=True)], Recipe(num_bn_adaptation_samples=10, memory_format="contiguous"))
    trainer.criterion = lambda out, targets: F.cross_entropy(out, targets["class"])
    trainer.fit(data)
    by_hand = net.model
    seen = [by_hand.left(a) + by_hand.right(b) for a, b in (pairs[0], pairs[1][:, :2])]
    expected = torch.stack([one.mean(0) for one in seen]).mean(0)
    torch.testing.assert_close(by_hand.norm.running_mean, expected.detach())
    whole = torch.stack([(by_hand.left(a) + by_hand.right(b)).mean(0) for a, b in pairs[:2]]).mean(0)
    assert not torch.allclose(by_hand.norm.running_mean, whole)


def test_first_samples_cut_what_is_nested() -> None:
    one = torch.arange(4.0)
    data = [((one, {"b": one}), [one, "name"]), ((one, {"b": one}), [one, "name"])]
    first, second = first_samples(data, 5)
    assert [len(first[0][0]), len(first[0][1]["b"]), len(first[1][0])] == [4, 4, 4]
    assert [len(second[0][0]), len(second[0][1]["b"]), len(second[1][0]), second[1][1]] == [1, 1, 1, "name"]
    assert first_samples(data, 0) == []


def texts(sizes: tuple[int, ...]) -> list[Any]:
    """Batches as a CTC loss takes them: the characters of all texts in one tensor, and the length of each text."""
    lengths = torch.tensor(sizes).split(4)
    return [(torch.ones(len(one), 1, 8, 8), {"text": torch.ones(int(one.sum())), "lengths": one}) for one in lengths]


def test_batches_that_cannot_be_divided_stay_whole() -> None:
    data = texts((3, 5, 2, 6, 1, 4, 2, 2, 5, 3, 2, 1))
    for found in (first_samples(data, 6), spread_samples(data, 6)):
        assert [len(x) for x, _ in found] == [4, 4]
        for _, targets in found:
            assert len(targets["text"]) == targets["lengths"].sum()
    assert [int(targets["lengths"][0]) for _, targets in spread_samples(data, 6)] == [3, 5], "the first and the last"
    assert [len(x) for x, _ in spread_samples(data, 100)] == [4, 4, 4]


def test_boxes_of_images_are_divided_by_image() -> None:
    """As torchvision's detectors take them. With two boxes in each of two images, the boxes are not the samples."""
    boxes = [{"boxes": torch.full((2, 4), float(number)), "name": str(number)} for number in range(2)]
    ((images, found),) = first_samples([(torch.zeros(2, 3, 8, 8), boxes)], 1)
    assert len(images) == 1
    assert [one["name"] for one in found] == ["0"]
    assert torch.equal(found[0]["boxes"], boxes[0]["boxes"])
    tensors = [one["boxes"][: number + 1] for number, one in enumerate(boxes * 2)]
    ((images, found),) = first_samples([(torch.zeros(4, 3, 8, 8), tensors)], 3)
    assert [len(images), len(found), len(found[2])] == [3, 3, 2]


class OnDevice(nn.Module):
    """Notes where its inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.zeros(1, device="meta")), nn.BatchNorm2d(1)
        self.seen: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(x.device.type)
        self.norm(torch.zeros(2, 1, 2, 2))
        return torch.eye(3)


def test_data_goes_where_the_model_is() -> None:
    """The meta device stands for one that is not the CPU."""
    module = OnDevice()
    recalibrate(module, batches(1))
    assert accuracy(module, [(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]))]) == pytest.approx(2 / 3)
    assert module.seen == {"meta"}


def test_mode_is_put_back_and_the_own_layout_stays() -> None:
    net = supernet()
    net.train()
    net.model.to(memory_format=torch.channels_last)
    Trainer(net, [Stage()], plain(memory_format="contiguous")).fit(batches(1))
    assert net.training
    other = supernet()
    Trainer(other, [Stage()], plain()).fit(batches(1))
    assert same(tensors(net), tensors(other))
