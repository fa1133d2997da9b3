"""A text classifier of the transformers library, from capture to ONNX: ``python tests/benchmarks/text_classifier.py``.

Prints one line for each check and ends with an error if one fails. The model is small, with random weights; nothing is
downloaded.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnas
from bnas import SuperNetwork

DYNAMIC = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
EXAMPLE, TRAINED, TRIED, BATCHES = (2, 16), (16, 40), (7, 24, 64), (1, 5)
TOKENS, CLASSES = 99, 3
SAME, SAME_IN_ONNX = 1e-5, 1e-4
"""The largest differences that pass for rounding."""

Texts = dict[str, Tensor]


def classifier() -> nn.Module:
    """BERT with a head for sequences of at most 64 tokens, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    limits = {"vocab_size": TOKENS, "max_position_embeddings": 64, "num_labels": CLASSES}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **limits, **dropouts)).eval()


def texts(batch: int, length: int) -> Texts:
    """Random tokens; every second text is padded in its last third."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[::2, length - length // 3 :] = 0
    return {"input_ids": torch.randint(TOKENS, (batch, length), generator=generator), "attention_mask": mask}


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def checks() -> Iterator[tuple[str, float, float]]:
    """What was checked, the error that was found, and the one that is allowed."""
    model = classifier()
    supernet = SuperNetwork.from_model(model, texts(*EXAMPLE), dynamic=DYNAMIC)
    yield "captured: all axes are dynamic", float(supernet.dynamic != _all_axes()), 0
    yield from _as_the_model(supernet)
    yield from _trained(supernet)
    yield from _exported(supernet)


def _all_axes() -> dict[str, dict[int, str]]:
    return {name: {0: "batch", **axes} for name, axes in DYNAMIC.items()}


def _as_the_model(supernet: SuperNetwork) -> Iterator[tuple[str, float, float]]:
    """The maximal program beside the model, and a sub-network beside the oracle."""
    program = supernet.eval().program(supernet.space.maximal())
    for length in TRIED:
        for batch in BATCHES:
            with torch.no_grad():
                expected, found = supernet.model(**texts(batch, length)), program(**texts(batch, length))
            yield f"program: batch {batch}, length {length}", apart(found.logits, expected.logits), SAME
    yield "program: the library's own output class", float(type(found) is not type(expected)), 0
    subnet = supernet.space.minimal()
    yield "minimal sub-network equals the oracle", bnas.verify(supernet.model, supernet, subnet, texts(*EXAMPLE)), SAME


def _trained(supernet: SuperNetwork) -> Iterator[tuple[str, float, float]]:
    """A step of the maximal program at several lengths, beside a step of the model itself."""
    for length in TRAINED:
        twin = classifier()
        twin.load_state_dict(supernet.model.state_dict())
        runs: list[tuple[nn.Module, Callable[..., object]]] = [(twin.train(), twin)]
        runs.append((supernet.train().model, supernet.program(supernet.space.maximal())))
        for owner, run in runs:
            owner.zero_grad()
            logits = run(**texts(4, length)).logits  # type: ignore[attr-defined]
            F.cross_entropy(logits, torch.arange(4) % CLASSES).backward()
            torch.optim.SGD(owner.parameters(), 0.1).step()
        mine = dict(supernet.model.named_parameters())
        error = max(apart(mine[name], parameter) for name, parameter in twin.named_parameters())
        yield f"training step: length {length}", error, SAME


def _exported(supernet: SuperNetwork) -> Iterator[tuple[str, float, float]]:
    """An extracted random sub-network as an ONNX file, on ONNX Runtime."""
    part = supernet.extract(supernet.space.sample(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "classifier.onnx"
        report = bnas.export_onnx(part, path, texts(*EXAMPLE))
        yield f"exported by {'torch.onnx.export' if report.fallback else 'bnas'}", float(bool(report.fallback)), 0
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for length in TRIED:
        for batch in BATCHES:
            given = texts(batch, length)
            (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
            with torch.no_grad():
                error = apart(torch.from_numpy(found), part(**given).logits)
            yield f"ONNX Runtime: batch {batch}, length {length}", error, SAME_IN_ONNX


def main() -> None:
    """Print all checks."""
    failed = 0
    for what, error, allowed in checks():
        failed += not error <= allowed
        print(f"{'ok    ' if error <= allowed else 'FAILED'} {what}{f': {error:.0e}' if error else ''}", flush=True)
    raise SystemExit(f"{failed} checks failed" if failed else 0)


if __name__ == "__main__":
    main()
