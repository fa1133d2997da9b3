"""Where an ONNX file comes from: the properties that it carries."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING

from .files import checksum

if TYPE_CHECKING:
    from bnas.passes import Subnet

    from .supernetwork import SuperNetwork

VERSION, CHOICE, COSTS, SUPERNET, FALLBACK = (
    f"bnas.{name}" for name in ("version", "subnet", "costs", "supernet", "fallback")
)
"""Names of the properties in ``metadata_props``."""


def origin(supernet: SuperNetwork, subnet: Subnet) -> dict[str, str]:
    """The properties of a model that was made from `subnet`: its choice and costs as JSON, version and hash.

    The hash is that of the super-network's weights: the ``sha256`` in the manifest that `SuperNetwork.save` writes.

    Raises:
        SubnetError: the sub-network is not of this space.
    """
    from .checkpoint import shared_bytes  # loads torch, which importing this module must not

    return {
        VERSION: version("bnas"),
        CHOICE: json.dumps(subnet.to_json(), sort_keys=True),
        COSTS: json.dumps(supernet.costs(subnet), sort_keys=True),
        SUPERNET: checksum(shared_bytes(supernet.model, supernet.kernel_matrices)),
    }
