"""Errors that a user can mend: each carries the exit code of the command line and a one-line message.

The message names the thing, the value, what is allowed and the next step. Everything else that is raised is a bug and
ends with exit code 1.
"""


class NasError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(NasError):
    """The call itself is wrong: an unknown option value, options that exclude each other."""

    exit_code = 2


class EnvironmentProblem(NasError):
    """The machine is not ready: environment variables, permissions, disk space, devices, locks held by others."""

    exit_code = 3


class DataProblem(NasError):
    """A data set, plans file, configuration or checkpoint is missing or unfit."""

    exit_code = 4


class BudgetProblem(NasError):
    """No candidate satisfies the budget that was asked for."""

    exit_code = 5
