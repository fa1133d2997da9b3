"""Memory that was freed is there for the next tensor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from bnas.runtime.evaluate.evaluator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        several = [torch.ones(19 << 20, dtype=torch.uint8) for _ in range(3)]
        several.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
def test_pages_are_asked_for_once() -> None:
    assert faults() < 100
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > 100_000  # of 145,920: a bound that is set does not move


def faults(**environment: str) -> int:
    """The pages that are asked for after memory is to be kept."""
    command, settings = [sys.executable, "-c", PROGRAM], {**os.environ, **environment}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout)
