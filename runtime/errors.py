"""Errors that several modules of the runtime raise."""

from __future__ import annotations

from bnas.passes import BnasError


class TrainingError(BnasError):
    """Training cannot start or continue: contradicting settings, unsuitable data, or a loss that is NaN or infinite."""


class BatchError(BnasError, TypeError):
    """A loader fails, or returns something that is not a batch; the message has the number of the batch, from 0."""


class CheckpointError(BnasError):
    """Saved files are missing or damaged, or do not fit the model."""


class ProgramError(BnasError, TypeError):
    """A program cannot be copied or saved, since its parameters are views of those of a super-network."""


class ParallelError(BnasError):
    """Processes that work together cannot continue: one of them ended, failed, or was started differently."""
