"""Errors that a user can act on: each is one sentence that says what to do."""

from __future__ import annotations


class BakeoffError(Exception):
    """Something that failed for a reason the user can act on. The command line prints its text and exits with 1."""

    exit_code = 1


class UsageError(BakeoffError):
    """What was asked for cannot be understood or cannot be done. The command line exits with 2."""

    exit_code = 2


class DataError(UsageError):
    """A row or a file of data that cannot be read; the text names file and line."""


class ModelError(UsageError):
    """A model folder that cannot be used; the text names what is missing."""


class Unsupported(UsageError):
    """A method that cannot work on this architecture, found before anything runs."""


class StoreError(BakeoffError):
    """The store cannot be read or written; nothing that it held is lost."""


class TrainingDiverged(BakeoffError):
    """The loss became infinite or not a number; the text names step, loss and gradient norm."""
