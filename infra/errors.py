"""Typed errors. Each says what is wrong (file, line, field or setting) and what to do next.

The command line turns `exit_code` into its own: 1 internal failure, 2 wrong use or
configuration, 3 data refused, 4 gate held.
"""

# ruff: noqa: N818 - refused data, a held gate and a conflict are outcomes with names of their own

from __future__ import annotations


class Logs2RecError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class ConfigError(Logs2RecError):
    """A recipe, contract or override that cannot be used: names the field to change."""

    exit_code = 2


class UsageError(Logs2RecError):
    """A command that cannot be carried out as asked."""

    exit_code = 2


class WorkspaceBusy(UsageError):
    """Another command is at work in the workspace; nothing was done."""


class EnvironmentProblem(Logs2RecError):
    """Something this machine or cluster lacks (Java, a service): `logs2rec doctor` explains."""

    exit_code = 2


class DataRefused(Logs2RecError):
    """Input that is not what the contract says; nothing was published."""

    exit_code = 3


class EmptySplit(DataRefused):
    """Nothing to train, validate or test on as of a run date: as on a log's first days."""


class GateHeld(Logs2RecError):
    """The candidate was registered but not promoted."""

    exit_code = 4


class CommitError(Logs2RecError):
    """A Delta commit that was refused or whose outcome is known to be a failure."""


class SchemaChanged(CommitError):
    """A table was written with columns, or in a format version, that cannot become what is asked for now."""

    exit_code = 2


class ContractChanged(UsageError):
    """The contract changed in a way that published arrivals cannot stay with; names the migration to run."""


class CommitConflict(CommitError):
    """Another writer committed to the same table and partition first: run the command again."""


class AuditError(Logs2RecError):
    """Counts that must add up did not; nothing was published."""


class ArtifactError(Logs2RecError):
    """A model artifact or checkpoint that is incomplete, altered or of another format."""


class TrainingError(Logs2RecError):
    """Training stopped on purpose (non-finite loss, empty split, too few workers)."""
