"""The form of what a model returns, such as a dict: ONNX keeps a row of tensors, so a property of the file has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from bnas.passes.lowering import fields_of

OUTPUTS = "bnas.outputs"
"""The name of the property in ``metadata_props``: the form as JSON."""


NOTHING = "none"
"""Stands for an output that is ``None``, which no file holds."""


def form_property(outputs: Any) -> dict[str, str]:
    """The property of a file whose model returns `outputs`; none where that is a single tensor."""
    form = _form_of(outputs)
    return {} if form is None else {OUTPUTS: json.dumps(form)}


def formed(properties: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Any:
    """The outputs of a file as its model returns them: a tensor, or a dict or tuple of such values.

    A file without the property, which others made, gives a tensor if it has one output, and else a dict by names.

    Args:
        properties: of the file.
        tensors: the outputs by name, in their order.
    """
    if OUTPUTS in properties:
        return _filled(json.loads(properties[OUTPUTS]), iter(tensors.values()))
    return next(iter(tensors.values())) if len(tensors) == 1 else dict(tensors)


def _form_of(value: Any) -> Any:
    """`value` as plain data, with None for each tensor, in the order of `bnas.passes.lowering.named_outputs`.

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
