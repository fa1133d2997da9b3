"""The base of every error that bnas raises on purpose, and the diagnostics that are not errors."""

from __future__ import annotations

from dataclasses import dataclass

from .wording import shortened


class BnasError(Exception):
    """Base class of all errors of bnas; the message names the place, the value, what is allowed and the remedy."""

    def __str__(self) -> str:
        """Return the message, with very long module names shortened in the middle."""
        return shortened(super().__str__())


class CaptureError(BnasError):
    """A model could not be captured as a graph; the message names the module and the line."""


class InputError(BnasError, ValueError):
    """A program was called with unsupported inputs; the message names the input, its axis and the reason."""


class RuleError(BnasError, ValueError):
    """An operator rule was registered twice, or states something impossible."""


class SubnetError(BnasError, ValueError):
    """A sub-network does not belong to the search space that it was given to."""


class ElasticityError(BnasError, ValueError):
    """A setting of the search space is out of its bounds."""


class PassError(BnasError, ValueError):
    """A pipeline is invalid, or a pass broke one of its promises; the message names the pass."""


class CopyError(BnasError, TypeError):
    """The model keeps an object that Python cannot copy; the message names the attribute."""


class LoweringError(BnasError):
    """A sub-network could not be lowered to an ONNX graph, or the graph computes other values than PyTorch."""


class StateError(LoweringError):
    """The model changes its own parameters or buffers in evaluation mode, which no ONNX file can do."""


class ModuleFormError(BnasError):
    """The model's own classes cannot express a sub-network: use the graph form. The message names module and line."""


class VerificationError(BnasError):
    """A sub-network does not compute what the original model computes on its kept entries."""


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an error: `BaseException.add_note`, which Python 3.10 does not have."""
    vars(error).setdefault("__notes__", []).append(text)


@dataclass(frozen=True)
class Diagnostic:
    """A part of the model that a pass left unchanged or made rigid, with the reason. Not an error."""

    place: str
    """Name of the graph node, module or parameter."""
    reason: str

    def __str__(self) -> str:
        return shortened(f"{self.place}: {self.reason}")
