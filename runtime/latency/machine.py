"""Description of the machine of a measurement, and the properties that comparable latencies must share."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "asimddp",
    "sve",
)
"""CPU flags of instruction sets that affect the speed of networks."""

DECISIVE = ("cpu", "flags", "cores", "onnxruntime")
"""The keys of `machine` that a latency depends on."""


def machine() -> dict[str, Any]:
    """Return a description of this machine as JSON values: the CPU, its flags among `CPU_FLAGS`, cores, versions."""
    described = _cpu_description()
    flags = set((described.get("flags") or described.get("Features") or "").split())
    return {
        "cpu": described.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


USUAL: Mapping[str, Any] = {"target": "ONNX Runtime", "provider": "CPUExecutionProvider"}
"""Target of a description without one, as in files of earlier versions."""


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return, in words, the differences of two machines that affect latency; empty if their latencies are comparable.

    Both are descriptions by `machine` or a target. All keys that a target adds itself count.
    """
    here, there = {**USUAL, **here}, {**USUAL, **there}
    keys = [*DECISIVE, *sorted((here.keys() | there.keys()) - machine().keys())]
    return [
        f"{key} was {there.get(key)!r} and is {here.get(key)!r} here" for key in keys if here.get(key) != there.get(key)
    ]


def place_of(described: Mapping[str, Any]) -> str:
    """Return where a latency was measured, in words: the target, its version and its other properties."""
    target = str(described.get("target", USUAL["target"]))
    if target == USUAL["target"]:
        told = (described.get("onnxruntime"), f"({described.get('provider', USUAL['provider'])})")
        return " ".join(str(one) for one in (target, *told) if one)
    own = [str(described[key]) for key in sorted(described.keys() - machine().keys() - {"target", "command"})]
    if target == "command":
        own = [*own, " ".join(map(str, described.get("command", ())))]
    known = ", ".join(one for one in own if one)
    return f"{target} ({known})" if known else target


def _cpu_description() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in reversed(lines) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
