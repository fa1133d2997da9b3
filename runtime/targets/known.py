"""The targets that have a name, and how settings give one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .target import Target, TargetError

KNOWN = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVINO"),
    "executorch": ("executorch", "ExecuTorch"),
    "litert": ("litert", "LiteRT"),
    "command": ("command", "Command"),
}
"""Module and class by `kind`."""


def target_of(given: Any) -> Target | None:
    """A target as settings give it: a target, its name, or a mapping with `kind` and its settings; None stays None.

    Raises:
        TargetError: There is no such target, or a setting is wrong.
    """
    if given is None or isinstance(given, Target):
        return given
    told = {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else None
    if told is None or told.get("kind") not in KNOWN:
        kind = told.get("kind") if told else given
        raise TargetError(f"target {kind!r}: there is {', '.join(KNOWN)}, or an object with the methods of bnas.Target")
    module, name = KNOWN[told["kind"]]
    made: Target = getattr(import_module(f"bnas.runtime.targets.{module}"), name)(**told)
    return made
