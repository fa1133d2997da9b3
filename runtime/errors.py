"""Errors that several modules of the runtime raise."""

from __future__ import annotations

from bnas.passes import BnasError


class TrainingError(BnasError):
    """Training cannot start or go on: contradicting settings, unfit data, or a loss that is no number."""


class BatchError(BnasError, TypeError):
    """What a loader gives is no batch of inputs and targets, or it fails; names the batch by its number, from 0."""


class CheckpointError(BnasError):
    """What was saved is missing, damaged, or does not fit the model."""


class ProgramError(BnasError, TypeError):
    """A program was to be copied or saved: its parameters are views of those of a super-network."""


class ParallelError(BnasError):
    """Processes that work together cannot go on: one of them ended, failed, or was started otherwise."""
