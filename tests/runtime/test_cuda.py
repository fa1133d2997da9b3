"""Models on a GPU: captured, verified, trained, evaluated and exported there. Skipped on machines without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from capture_cases import captured
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnas.passes import Elasticity
from bnas.runtime import Evaluator, Recipe, Stage, SuperNetwork, Trainer, export_onnx, verify
from bnas.testing import assert_gradients_match

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # cuDNN says so of every recurrent layer in bfloat16, and of layers whose weights are a part of shared ones.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
]

SMALL = Elasticity(min_width=4, divisor=4)


class Images(nn.Module):
    """Blocks that can be skipped, batch norms, dropout, and a table that forward keeps by device."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1))
            for _ in range(3)
        )
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 4)
        self.tables: dict[torch.device, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.device not in self.tables:
            self.tables[x.device] = torch.linspace(0.5, 1, 16, device=x.device)
        y = self.stem(x)
        for block in self.blocks:
            y = (y + block(y)).relu()
        return self.head(self.drop(y.mean((2, 3)) * self.tables[x.device]))


class Words(nn.Module):
    """Embeddings, positions made in forward, an LSTM and attention with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.recurrent = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True, dropout=0.1)
        self.head = nn.Linear(48, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x, _ = self.recurrent(x)
        x = self.layer(x, src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weights).sum(1) / weights.sum(1))


def images(batch: int = 8, size: int = 12) -> Tensor:
    return torch.randn(batch, 3, size, size, device="cuda")


def words(batch: int = 3, length: int = 9) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long, device="cuda")
    mask[0, length // 2 :] = 0
    return {"ids": torch.randint(0, 50, (batch, length), device="cuda"), "mask": mask}


def test_images_are_captured_on_the_gpu_and_verified() -> None:
    model = Images().cuda().eval()
    supernet = captured(model, images(), [images(3, 9)], elasticity=SMALL)
    assert supernet.space.blocks
    assert {one.device.type for one in (*supernet.parameters(), *supernet.buffers())} == {"cuda"}
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        verify(model, supernet, subnet, images())
        part = supernet.extract(subnet)
        assert {one.device.type for one in (*part.parameters(), *part.buffers())} == {"cuda"}
        torch.testing.assert_close(supernet.program(subnet)(images(5)).shape, part(images(5)).shape)


def test_words_are_captured_on_the_gpu_at_other_lengths() -> None:
    model = Words().cuda().eval()
    supernet = SuperNetwork.from_model(model, words(), SMALL)
    assert set(supernet.ir.sizes.names) == {"batch", "length"}
    verify(model, supernet, supernet.space.minimal(), words())
    other = words(5, 17)
    with torch.no_grad():
        torch.testing.assert_close(supernet.program(supernet.space.maximal())(**other), model(**other))
        small = supernet.extract(supernet.space.minimal())
        torch.testing.assert_close(supernet.program(supernet.space.minimal())(**other), small(**other))


def test_recurrent_layers_train_on_the_gpu() -> None:
    """A program's gradients are those of the extracted module, at the entries that it keeps."""
    torch.backends.cudnn.allow_tf32 = False
    model = Words().cuda()
    supernet = SuperNetwork.from_model(model, words(), SMALL)
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_gradients_match(supernet.train(), subnet, words(), tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_extracted_module_may_be_converted_on_the_gpu(dtype: torch.dtype) -> None:
    supernet = SuperNetwork.from_model(Words().cuda().eval(), words(), SMALL)
    small, given = supernet.extract(supernet.space.minimal()), words()
    with torch.no_grad():
        expected = small(**given)
        torch.testing.assert_close(small.to(dtype)(**given).float(), expected, rtol=0.1, atol=0.05)


def test_a_super_network_moves_between_devices() -> None:
    supernet = SuperNetwork.from_model(Images().eval(), images().cpu(), SMALL)
    subnet, given = supernet.space.minimal(), images()
    with torch.no_grad():
        expected = supernet.program(subnet)(given.cpu())
        supernet.cuda()
        torch.testing.assert_close(supernet.program(subnet)(given).cpu(), expected, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(supernet.extract(subnet)(given).cpu(), expected, rtol=1e-2, atol=1e-3)
        supernet.cpu()
        torch.testing.assert_close(supernet.program(subnet)(given.cpu()), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_and_evaluation_on_the_gpu(precision: str, tmp_path: Path) -> None:
    """What can be learnt is learnt, in both precisions; evaluation, saving, loading and export end the way."""
    inputs = torch.randn(256, 3, 12, 12)
    targets = (inputs.mean((1, 2, 3)) > 0).long() + 2 * (inputs[:, 0].mean((1, 2)) > 0).long()
    loader = DataLoader(TensorDataset(inputs, targets), 32, shuffle=True)
    supernet = SuperNetwork.from_model(Images().cuda(), images(), SMALL)
    stages = [Stage(("depth", "width"), epochs=4)]
    Trainer(supernet, stages, Recipe(learning_rate=0.05, precision=precision), directory=tmp_path / "t").fit(loader)
    evaluator = Evaluator(supernet, loader, loader)
    best = evaluator.evaluate(supernet.space.maximal())["accuracy"]
    assert best > 0.55
    _, together = evaluator.evaluate_many([supernet.space.minimal(), supernet.space.maximal()])
    assert isinstance(together, dict)
    assert together["accuracy"] == pytest.approx(best, abs=0.02)
    supernet.save(tmp_path / "supernet")
    again = SuperNetwork.load(tmp_path / "supernet", Images().cuda())
    torch.testing.assert_close(list(again.parameters()), list(supernet.parameters()))
    small = supernet.extract(supernet.space.minimal())
    export_onnx(small, tmp_path / "small.onnx", images())


def trained(optimizer: str, device: str, folder: Path, *, stop: bool = False) -> Tensor:
    """The parameters after two epochs on a device; with `stop` in two trainings, the second of which is resumed."""
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3, 12, 12), torch.arange(16) % 4) for _ in range(3)]
    start = Images().state_dict()
    for part in range(1 + stop):
        model = Images().eval()
        model.drop = nn.Dropout(0.0)
        model.load_state_dict(start)
        supernet = SuperNetwork.from_model(model.to(device), images().to(device), SMALL)
        recipe = Recipe(learning_rate=0.001, optimizer=optimizer, memory_format="contiguous")
        trainer = Trainer(supernet, [Stage(("width",), epochs=2)], recipe, directory=folder)
        if stop and part == 0:
            trainer.on_epoch = _interrupt
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(batches)
        else:
            trainer.fit(batches, resume=stop)
    return torch.cat([one.detach().cpu().flatten() for one in supernet.parameters()])


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_optimizer_of_one_kernel_is_resumed(optimizer: str, tmp_path: Path) -> None:
    """In the mean: Adam makes a whole step of a gradient that rounding moves across zero."""
    found = trained(optimizer, "cuda", tmp_path / "gpu")
    twice = trained(optimizer, "cuda", tmp_path / "two", stop=True)
    assert (found - twice).abs().mean() < 1e-4


def test_sgd_of_one_kernel_learns_what_it_learns_on_the_cpu(tmp_path: Path) -> None:
    found = trained("sgd", "cuda", tmp_path / "gpu")
    torch.testing.assert_close(found, trained("sgd", "cpu", tmp_path / "cpu"), rtol=1e-2, atol=2e-3)


def test_a_detector_on_the_gpu() -> None:
    """Its opaque methods, and tables that it makes at first use, are on the device of the images."""
    make = torchvision.models.detection.retinanet_resnet50_fpn
    net = make(weights=None, weights_backbone=None, min_size=64, max_size=96, score_thresh=0.0).cuda().eval()
    pictures = [torch.rand(3, 64, 72, device="cuda"), torch.rand(3, 80, 64, device="cuda")]
    supernet = SuperNetwork.from_model(net, (pictures,))
    with torch.no_grad():
        expected, found = net(pictures), supernet.program(supernet.space.maximal())(pictures)
        small = supernet.extract(supernet.space.minimal())(pictures)
    assert all(len(one["boxes"]) for one in expected)
    assert [one["boxes"].shape for one in found] == [one["boxes"].shape for one in expected]
    torch.testing.assert_close(found[0]["scores"], expected[0]["scores"], rtol=1e-3, atol=1e-4)
    assert small[0]["boxes"].device.type == "cuda"
