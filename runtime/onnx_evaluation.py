"""The quality of an ONNX file as it is deployed: measured on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from .evaluation import Batch, Metric, accuracy
from .onnx_session import OnnxModule


def evaluate_onnx(
    path: str | os.PathLike[str], loader: Iterable[Batch], metric: Metric = accuracy, **settings: Any
) -> float:
    """The metric of the ONNX model at `path` on batches of inputs and targets, by default its top-1 accuracy (0 to 1).

    Args:
        path: The file.
        loader: Batches, transformed as when deployed.
        metric: Gets a module that runs the model on ONNX Runtime, and `loader`.
        settings: ``threads``, ``inter_threads`` and ``provider``, as for `bnas.measure_latency`.

    Raises:
        SessionError: the file is missing or damaged, the provider is not installed, or a batch does not fit.
        EvaluationError: there is no data, or an output is NaN or inf.
    """
    return metric(OnnxModule(path, **settings), loader)
