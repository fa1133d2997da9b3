"""ONNX Runtime sessions: opened in one place, with all optimisations, and with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from bnas.passes.errors import BnasError
from bnas.passes.onnx.lower import fields_of, named_tensors
from bnas.runtime.evaluate.evaluation import Batch, Metric, accuracy, measured
from bnas.runtime.latency.settings import CPU, LatencySettings
from bnas.runtime.nested import in_pieces, tensors_in

from .file import BATCH
from .weights import ExternalDataError, check_content, weight_files

# The structure of a model's output, such as a dict. ONNX has only a list of tensors, so a property of the file has it.

OUTPUTS = "bnas.outputs"
"""Name of the property in ``metadata_props`` with the structure as JSON."""


NOTHING = "none"
"""Stands for an output ``None``, which an ONNX file cannot have."""


def form_property(outputs: Any) -> dict[str, str]:
    """Return the property for a model that returns `outputs`; an empty dict if that is a single tensor."""
    form = _form_of(outputs)
    return {} if form is None else {OUTPUTS: json.dumps(form)}


def formed(properties: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Any:
    """Arrange the outputs of a file in the structure that the original model returns.

    Without the property (a file of another program), a single output is a tensor and several are a dict by name.

    Args:
        properties: The properties of the file.
        tensors: The outputs by name, in order.
    """
    if OUTPUTS in properties:
        return _filled(json.loads(properties[OUTPUTS]), iter(tensors.values()))
    return next(iter(tensors.values())) if len(tensors) == 1 else dict(tensors)


def _form_of(value: Any) -> Any:
    """Return the structure of `value` with None for tensors, in the order of `bnas.passes.onnx.lower.named_outputs`.

    A named tuple and a data class become a dict by their fields; ``None`` is the word `NOTHING`.
    """
    fields = fields_of(value)
    if fields is not None:
        return {str(key): _form_of(item) for key, item in fields.items()}
    if isinstance(value, list | tuple):
        return [_form_of(item) for item in value]
    return NOTHING if value is None else None


def _filled(form: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(form, dict):
        return {key: _filled(item, tensors) for key, item in form.items()}
    if isinstance(form, list):
        return tuple(_filled(item, tensors) for item in form)
    return None if form == NOTHING else next(tensors)


Array: TypeAlias = np.ndarray[Any, Any]
Source: TypeAlias = str | os.PathLike[str] | bytes
"""An ONNX model: the path of its file, or its serialised content."""


class SessionError(BnasError, ValueError):
    """ONNX Runtime cannot load or run a model, or has no such execution provider."""


def open_session(
    source: Source, settings: LatencySettings | None = None, *, profile: Path | None = None, **changes: Any
) -> Any:
    """An ONNX Runtime session with all graph optimisations.

    Args:
        source: The model.
        settings: `threads`, `inter_threads` and `provider` are used. Threads do not spin while they wait, because that
            would take CPU time from others. Operators that the provider cannot run are run on the CPU.
        profile: Record the time of each operator: prefix of the name of the file that `end_profiling` writes.
        changes: Single settings by name.

    Raises:
        SessionError: The provider is not installed or cannot start, the model cannot be loaded, or it names weights
            outside its folder (which are not read).
    """
    settings = LatencySettings.of(settings, changes)
    threads, inter_threads, provider = settings.threads, settings.inter_threads, settings.provider
    check_provider(provider)
    _check_weights(source)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    modes = onnxruntime.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if inter_threads > 1 else modes.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, inter_threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.log_severity_level = 4  # what goes wrong is raised: nothing needs to be printed as well
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked, and no other form
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    providers = list(dict.fromkeys((provider, CPU)))
    try:
        model = source if isinstance(source, bytes) else os.fspath(source)
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot load it: {_told(error)}") from error
    if provider not in session.get_providers():  # ONNX Runtime itself goes on with the CPU and only logs it
        raise SessionError(
            f"provider: {provider} is installed but cannot be started; check that its libraries are installed"
        )
    return session


def _check_weights(source: Source) -> None:
    try:
        if isinstance(source, bytes):
            check_content(source)
        else:
            weight_files(Path(source))
    except ExternalDataError as error:
        raise SessionError(f"ONNX Runtime cannot load it: {error}") from error


def check_provider(provider: str) -> None:
    """Raise `SessionError` if `provider` is not installed; the message lists the installed ones."""
    installed = onnxruntime.get_available_providers()
    if provider not in installed:
        near = get_close_matches(provider, installed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SessionError(f"provider: {provider!r} is not installed; installed are {', '.join(installed)}{hint}")


def run_session(session: Any, inputs: Sequence[Tensor]) -> list[Array]:
    """Run a session on tensors in the order of the model's inputs; return its outputs.

    Raises:
        SessionError: The tensors do not fit the model, or it fails.
    """
    names = [one.name for one in session.get_inputs()]
    if len(names) != len(inputs):
        raise SessionError(f"takes the inputs {', '.join(names)} but got {len(inputs)} tensors")
    feed = {name: as_array(name, given) for name, given in zip(names, inputs, strict=True)}
    try:
        return list(session.run(None, feed))
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot run it: {_told(error)}") from error


def as_array(name: str, tensor: Any) -> Array:
    """Return `tensor` as a numpy array; a `SessionError` names it if it is not a tensor or numpy lacks its dtype."""
    if not isinstance(tensor, Tensor):
        raise SessionError(
            f"{name}: {tensor!r} is not a tensor, but an ONNX model returns only tensors: convert it, or leave it out"
        )
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:
        raise SessionError(f"{name}: {tensor.dtype} cannot be passed to ONNX Runtime") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class OnnxCallable(nn.Module, ABC):
    """An ONNX model that can be called like a module. Subclasses implement `_run` for their runtime.

    It returns the structure of the exported module: a tensor, a dict or a tuple. For a file that `export_onnx` did not
    write, it returns a single output as a tensor, and several outputs as a dict by name.
    """

    def __init__(
        self, place: str, inputs: Iterable[str], outputs: Iterable[str], properties: Mapping[str, str]
    ) -> None:
        """Store the model's name for errors, the names of its inputs and outputs in order, and its properties."""
        super().__init__()
        self.input_names, self._output_names = tuple(inputs), tuple(outputs)
        self._place, self._properties = place, properties
        self.eval()

    @abstractmethod
    def _run(self, tensors: list[Tensor]) -> Sequence[Array]:
        """Return the outputs for all inputs, both in order; raises `SessionError`."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs for positional and keyword inputs; raises `SessionError` if they do not fit."""
        given = tensors_in(list(inputs))
        try:
            if named:
                given = self._in_order(given, named)
            found = [torch.from_numpy(one) for one in self._run_all(given)]
        except SessionError as error:
            shapes = ", ".join(f"{tuple(one.shape)} {one.dtype}" for one in given)
            raise SessionError(f"{self._place}, on inputs of {shapes}: {error}") from error
        return formed(self._properties, dict(zip(self._output_names, found, strict=True)))

    def _run_all(self, tensors: list[Tensor]) -> Sequence[Array]:
        """Run a batch of any size; a file for a fixed number of samples runs on as many at a time."""
        count = int(self._properties.get(BATCH, 0))
        if not count or len(tensors[0]) in (0, count):
            return self._run(tensors)
        pieces = [self._run(one) for one in in_pieces(tensors, count)]
        return [np.concatenate(some) for some in zip(*pieces, strict=True)]

    def _in_order(self, positional: list[Tensor], named: dict[str, Any]) -> list[Tensor]:
        """The tensors in the order of the model's inputs."""
        found = dict(zip(self.input_names, positional, strict=False))
        for name, value in named.items():
            found.update(named_tensors(value, name))
        if set(found) != set(self.input_names):
            raise SessionError(f"takes the inputs {', '.join(self.input_names)} but got {', '.join(found)}")
        return [found[name] for name in self.input_names]


class OnnxModule(OnnxCallable):
    """A module that runs an ONNX model on ONNX Runtime, for inference only.

    It returns the structure of the exported module: a tensor, a dict or a tuple. For a file that `export_onnx` did not
    write, it returns a single output as a tensor, and several outputs as a dict by name.
    """

    def __init__(self, source: Source, **settings: Any) -> None:
        """Open a session; `settings` are those of `open_session`, and so are the errors."""
        place = "the model" if isinstance(source, bytes) else os.fspath(source)
        try:
            session = open_session(source, **settings)
        except SessionError as error:
            raise SessionError(f"{place}: {error}") from error
        inputs, outputs = ([one.name for one in some] for some in (session.get_inputs(), session.get_outputs()))
        super().__init__(place, inputs, outputs, session.get_modelmeta().custom_metadata_map)
        self.session = session

    def _run(self, tensors: list[Tensor]) -> Sequence[Array]:
        return run_session(self.session, tensors)


# The quality of an ONNX file as it is deployed: measured on ONNX Runtime.


def evaluate_onnx(
    path: str | os.PathLike[str], loader: Iterable[Batch], metric: Metric = accuracy, **settings: Any
) -> float:
    """Return the metric of the ONNX model at `path` on batches of inputs and targets; by default top-1 accuracy.

    Args:
        path: The file.
        loader: Batches, transformed as when deployed.
        metric: A function of a module that runs the model on ONNX Runtime, and of `loader`.
        settings: ``threads``, ``inter_threads`` and ``provider``, as for `bnas.measure_latency`.

    Raises:
        SessionError: the file is missing or damaged, the provider is not installed, or a batch does not fit.
        EvaluationError: the data are empty, an output is NaN or inf, or the metric does not return a number.
        BatchError: the loader fails, or what it gives is no batch.
    """
    return measured(metric, OnnxModule(path, **settings), loader)
