"""``bnas init``: a first configuration file for the user's model and data."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from torch import nn

    from bnas.config.proposal import Proposal
    from bnas.data.guess import Guess, Size
    from bnas.run.job import Splits

ENDINGS = (".yaml", ".yml")


def init(
    model: Annotated[
        str, typer.Argument(help="torchvision:NAME, package.module:FACTORY, path/file.py:FACTORY or path/file.pt2.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="A folder of images, a .npz file, FILE.py:FACTORY, or digits, cifar10, ..."),
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Trained weights: .safetensors or .pt.")] = None,
    inputs: options.Inputs = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.yaml).")] = Path("bnas.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented configuration file for a model and its data, which `bnas run` runs as it is.

    The shape of the input and the number of classes come from a batch of the data; without data they are guessed from
    the model. The command asks no questions, and marks each guess as a guess. If the guess of an input is wrong, give
    --input for each input of the model.
    """
    from bnas.config.file import load_config
    from bnas.run.files.mark import OutputError
    from bnas.runtime.storage.files import there, write_bytes

    if output.suffix not in ENDINGS:
        raise OutputError(f"{output}: the file is written in YAML; choose a name that ends in .yaml")
    if there(output) and not overwrite:
        raise OutputError(f"{output} exists already; use --overwrite to replace it, or --output with another name")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: the folder {output.parent} does not exist; create it first")
    proposal, told = _proposed(model, data, weights, inputs or [], output)
    write_bytes(output, proposal.text().encode())
    for line in told:
        typer.echo(line)
    if data is None:
        typer.echo(f"Wrote {output}, without your data. Set `data` in it, then: {_next(output)}")
        return
    load_config(output)
    if not proposal.classifies:
        typer.echo(f"Wrote {output}, without your loss and metric. Set both in it, then: {_next(output)}")
        return
    typer.echo(f"Wrote {output}. Next: {_next(output)}")


def _next(output: Path) -> str:
    return f"`{shlex.join(['bnas', 'run', str(output)])}`"


def _proposed(
    model: str, data: str | None, weights: Path | None, inputs: list[str], output: Path
) -> tuple[Proposal, list[str]]:
    """Return the text of the configuration file, and the messages about it."""
    from bnas.config.proposal import Proposal, is_like_a_transformer
    from bnas.data.inputs import parse_input
    from bnas.run.files.trust import code_in, remember

    folder = output.parent
    name, source = as_seen_from(folder, model), None if data is None else as_seen_from(folder, data)
    file = None if weights is None else Path(as_seen_from(folder, str(weights)))
    remember(code_in({"model": name, "data": source}, folder).values())
    loaded = Loaded(name, source, file, folder)
    found = loaded.guessed([parse_input(one) for one in inputs])
    proposal = Proposal(
        name,
        found,
        source,
        dataset=loaded.is_known,
        data_options=loaded.options,
        weights=None if file is None else str(file),
        num_classes=loaded.num_classes,
        classifies=loaded.classifies,
        attention=is_like_a_transformer(loaded.model),
        device=_device(),
        command=shlex.join(["bnas", *sys.argv[1:]]),
        file=output.name,
        folder=f"runs/{_plain(name)}",
    )
    return proposal, list(loaded.told(found))


def as_seen_from(folder: Path, name: str) -> str:
    """Return the name of a model or of data with its file or folder relative to `folder`, not to the current one."""
    place, colon, factory = name.rpartition(":") if name.rpartition(":")[0].endswith(".py") else (name, "", "")
    path = Path(place)
    if path.is_absolute() or not path.exists():
        return name
    return f"{Path(os.path.relpath(path, folder)).as_posix()}{colon}{factory}"


def _plain(name: str) -> str:
    """Return the last word of a model's name, for the name of a folder."""
    word = Path(name.rpartition(":")[2]).stem
    return "".join(one if one.isalnum() or one in "-_" else "-" for one in word) or "mine"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Loaded:
    """The model and the data that the user names, and the settings with which they fit together.

    Args:
        name: Name of the model.
        source: Name of the data.
        weights: File of weights.
        folder: Folder to which these names are relative.
    """

    def __init__(self, name: str, source: str | None, weights: Path | None, folder: Path) -> None:
        self.name, self.source, self.weights, self.folder = name, source, weights, folder
        self.size: Size | None = self._size()
        self.options: dict[str, Any] = {} if self.size is None else {"size": self.size.side}
        self.num_classes: int | None = None
        self.data: Splits | None = None if source is None else self._data()
        self.classes, self.certain = self._classes()
        self.model: nn.Module = self._model()

    @property
    def is_known(self) -> bool:
        """Whether the data are built in."""
        from bnas.data.samples import KNOWN

        return self.source == "digits" or self.source in KNOWN

    def _size(self) -> Size | None:
        """The size to which a folder of images is resized."""
        from bnas.data.datasets import default_place
        from bnas.data.guess import usual_size

        return None if self._makes_batches else usual_size(*default_place(str(self.source), self.folder))

    def _data(self) -> Splits:
        from bnas.data.sources import load_data

        return load_data(str(self.source), self.folder, **self.options)

    def _classes(self) -> tuple[int | None, bool]:
        from bnas.data.guess import classes_of

        return (None, False) if self.data is None else classes_of(self.data)

    def _model(self) -> nn.Module:
        """The model; a torchvision model gets as many outputs as the data have classes."""
        from bnas.data.factories import is_own_model

        if not is_own_model(self.name) and self.certain:
            self.num_classes = self.classes
        return self._loaded()

    def _loaded(self) -> nn.Module:
        from bnas.data.sources import load_model

        options = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return load_model(self.name, self.weights, self.folder, **options)

    def guessed(self, given: list[Any]) -> Guess:
        """Guess the inputs. Images are resized to the model's size, and its factory gets the number of classes."""
        from bnas.data.guess import GuessError, Size, guess, inputs_of_batch, sized

        try:
            found = guess(self.model, self.data, given)
        except GuessError:
            side = None if self._makes_batches else sized(self.model, inputs_of_batch(self.model, self._known_data))
            if given or side is None:
                raise
            self.size, self.options = Size(side, "the first size that the model accepts"), {"size": side}
            self.data = self._data()
            found = guess(self.model, self.data)
        return self._with_classes(found, given) if self._differs(found) else found

    @property
    def classifies(self) -> bool:
        """Whether cross-entropy and accuracy fit the model and its data."""
        return self.data is None or self.accuracy is not None

    @cached_property
    def accuracy(self) -> float | None:
        """The accuracy on the first validation batch, if there are data and this is a classification."""
        from bnas.data.guess import accuracy_on_first_batch

        return None if self.data is None else accuracy_on_first_batch(self.model, self.data)

    @property
    def _makes_batches(self) -> bool:
        """Whether the user's code makes the batches, so that bnas cannot resize them."""
        return self.source is None or ":" in self.source or self.source == "digits"

    @property
    def _known_data(self) -> Splits:
        assert self.data is not None
        return self.data

    def _differs(self, found: Guess) -> bool:
        if found.outputs is None or self.classes is None:
            return False
        return found.outputs != self.classes if self.certain else found.outputs < self.classes

    def _with_classes(self, found: Guess, given: list[Any]) -> Guess:
        """Guess again, with a model that was created with the number of classes."""
        from bnas.data.factories import SourceError
        from bnas.data.guess import GuessError, guess

        self.num_classes = self.classes
        try:
            self.model = self._loaded()
            again = guess(self.model, self.data, given)
        except SourceError:
            again = found
        if self._differs(again):
            many = f"{'' if self.certain else 'at least '}{self.classes}"
            told = f"the model {self.name} has {again.outputs} outputs, but the data {self.source} have {many} classes"
            raise GuessError(f"{told}; choose a model with as many outputs, or other data")
        return again

    def told(self, found: Guess) -> Iterator[str]:
        """Return what was found, and how certain it is, line by line."""
        count = sum(one.numel() for one in self.model.parameters())
        yield f"model: {self.name}, {count:,} parameters"
        yield f"inputs: {found.told}"
        if self.size is not None:
            side = self.size.side
            yield f"images: resized to {side} x {side} (a guess: {self.size.why})"
            yield "        if the model was trained on images of another size, set data_options: {size: N}"
        if found.outputs is not None and self.classifies:
            yield f"outputs: {found.outputs}{self._told_classes()}"
        if not self.classifies:
            yield "loss and metric: set `criterion` and `metric`; cross-entropy and accuracy do not fit"
        yield from self._about_accuracy()
        if self.num_classes is not None:
            yield f"num_classes: {self.num_classes}, so that the model has one output for each class of the data"

    def _about_accuracy(self) -> Iterator[str]:
        """Warn of a model that is hardly better than guessing: with its weights, or without any."""
        if self.accuracy is None or not self.classes or self.accuracy >= 2 / self.classes:
            return
        yield f"accuracy: {100 * self.accuracy:.1f} % on the first validation batch, hardly better than guessing"
        if self.weights is None:
            yield "          bnas makes a trained model smaller: name the file of its weights, --weights FILE"
            return
        yield f"          check that {self.weights.name} fits the model, and that data are prepared as in training"
        yield "          (size, mean, std, order of classes); if outputs are no class scores, set criterion and metric"

    def _told_classes(self) -> str:
        if self.classes is None:
            return ""
        if self.certain:
            return f" for {self.classes} classes (sure: read from the data)"
        return f" for at least {self.classes} classes (a guess: from the largest label in the first batch)"
