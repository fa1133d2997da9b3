"""A text classifier of the transformers library, from capture to ONNX."""

from __future__ import annotations

import pytest
from text_classifier import checks


@pytest.mark.filterwarnings("ignore")
def test_text_classifier_takes_any_length_in_training_and_in_onnx() -> None:
    pytest.importorskip("transformers")
    failed = [what for what, error, allowed in checks() if not error <= allowed]
    assert failed == []
