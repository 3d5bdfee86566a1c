# SPDX-License-Identifier: Apache-2.0
"""Errors a user can mend. The command line prints them as one line and exits with status 2."""

from __future__ import annotations


class GansparseError(Exception):
    """Base of every error that gansparse raises on purpose."""


class InputError(GansparseError, ValueError):
    """An argument, file or array breaks a rule; the message says what, where and the remedy."""


class CheckpointError(GansparseError, ValueError):
    """A weights file or checkpoint is missing, truncated, or not what it should be."""


class TrainingError(GansparseError, RuntimeError):
    """Training can't go on (a loss became NaN, say); the message names step and phase."""


class OutputError(GansparseError, OSError):
    """A result could not be written; nothing half-written is left behind."""
