"""A text classifier of the transformers library, from capture to ONNX."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/text_classifier.py"


def script() -> ModuleType:
    """The benchmark that makes the checks."""
    spec = importlib.util.spec_from_file_location("text_classifier", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["text_classifier"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_text_classifier_takes_any_length_in_training_and_in_onnx() -> None:
    pytest.importorskip("transformers")
    failed = [what for what, error, allowed in script().checks() if not error <= allowed]
    assert failed == []
