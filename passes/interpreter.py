"""The graph of an IR, run node by node on another module's tensors: to check what is made of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.fx import Interpreter

from .ir import IR


class GraphInterpreter(Interpreter):
    """Runs the graph of `ir` on the tensors of `root`, a module of the structure of the traced one.

    What the graph has and the model has not comes from the IR: tensors made in forward, in the number type of `root`,
    and leaf modules, in evaluation mode.
    """

    def __init__(self, ir: IR, root: nn.Module, *, garbage_collect_values: bool = True) -> None:
        super().__init__(root, garbage_collect_values=garbage_collect_values, graph=ir.graph)
        self.ir, self.root = ir, root
        self.own = {name: copy.deepcopy(module).eval() for name, module in ir.modules.items()}

    def fetch_attr(self, target: str) -> Any:
        """As in fx, for what the graph calls its own too."""
        if target in self.own:
            return self.own[target]
        return self.ir.constant(target, self.root) if target in self.ir.constants else super().fetch_attr(target)
