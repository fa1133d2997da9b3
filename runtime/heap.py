"""Memory that was freed stays with the process, ready for the next tensor."""

from __future__ import annotations

import torch

LARGE = 31 << 20
"""Bytes; glibc's largest threshold is 32 MiB."""


def keep_freed_memory() -> None:
    """Let glibc keep blocks of up to 31 MiB that are freed, and 62 MiB of free memory at the end of its heap.

    It hands larger ones back to the operating system at once, and every page of the next one has to be asked for and
    cleared: that may take longer than the operation that fills it. What is large is decided by the largest block that
    was freed so far (malloc(3), M_MMAP_THRESHOLD), of those that got a mapping of their own. Several are freed here,
    never written: one might find room in the heap, and raise nothing. Other C libraries are not concerned.
    """
    blocks = [torch.empty(LARGE, dtype=torch.uint8) for _ in range(4)]
    blocks.clear()
