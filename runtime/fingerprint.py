"""What tells a super-network, or a model, from any other: its search space and the values of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from bnas.passes import SearchSpace


def fingerprint(tensors: Mapping[str, Tensor], space: SearchSpace) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the choices of `space` and the bytes of `tensors`, by name."""
    choices = [[v.name, v.kind, v.choices] for v in space.variables()]
    return digest_of(tensors, json.dumps([choices, space.chains, space.depth_limit]))[:16]


def digest_of(tensors: Mapping[str, Tensor], head: str = "") -> str:
    """SHA-256, in hexadecimal, of `head` and of the names, shapes, types and bytes of `tensors`, by name."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
