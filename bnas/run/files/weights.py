"""Read models and checkpoints from a run folder, after checking that the run wrote them."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.frontend.copies import deep_copy
from bnas.runtime import SuperNetwork
from bnas.runtime.storage.checkpoint import MODEL, TRAINING, check_state, read_model

from .mark import REPEAT, OutputError
from .output import Output


def check_training(output: Output, name: str = "training") -> None:
    """Check the last checkpoint of a training in the folder `name` of a run, if there is one.

    Raises:
        OutputError: The run did not write the checkpoint, or it was changed since.
    """
    if TRAINING.exists(output.folder / name / "last"):
        output.ledger.check(f"{name}/last/{TRAINING.manifest}")


def read_original(output: Output, model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the weights before the training, in evaluation mode.

    Raises:
        OutputError: The run did not write these weights, or they were changed since.
        CheckpointError: The run folder does not have these weights, or they belong to another model.
    """
    if MODEL.exists(output.folder / "original"):
        output.ledger.check(f"original/{MODEL.manifest}")
    original = deep_copy(model)
    read_model(output.folder / "original", original)
    return original.eval()


def read_module(supernet: SuperNetwork, subnet: Subnet, file: Path) -> GraphModule:
    """Return the extracted sub-network with the weights and statistics in `file`.

    Raises:
        OutputError: The file cannot be read.
        CheckpointError: The file belongs to another sub-network.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(file)
    except Exception as error:
        raise OutputError(f"{file}: cannot be read: {error}; {REPEAT}") from error
    module = supernet.extract(subnet)
    check_state(module.state_dict(), state, str(file))
    module.load_state_dict(state)
    return module
