"""Every error a person can meet, one class a meaning.

The message of each is written for the person who reads it: it names the thing, what was found, what was expected and
the next step. The command line prints it and exits with ``exit_code``; the dashboard shows it as text.
"""

from collections.abc import Iterable


class WiscaError(Exception):
    """Base of all named errors. ``exit_code`` is what the command line returns."""

    exit_code = 2


class UnreadableInput(WiscaError):
    """A file or folder is missing, damaged or not what its name says."""


class UnsafeInput(UnreadableInput):
    """Input that would run code or leave its folder; nothing of it was used."""


class HubError(UnreadableInput):
    """A hub id is malformed, or the hub did not give the files."""


class UnsupportedCheckpoint(WiscaError):
    """Readable, but its stored values are not plain floating-point weights (quantised, custom code)."""


class UnknownArchitecture(WiscaError):
    """No site rule covers this model; it can be looked at, not rescaled."""


class ConfigMismatch(WiscaError):
    """config.json and the weights disagree."""


class BadOption(WiscaError):
    """An option has a value that is not allowed."""


class SpecError(BadOption):
    """A field of a comparison's spec has a value that is not allowed. ``field``, ``value``, ``allowed`` say which and
    what.
    """

    def __init__(self, field: str, value: object, allowed: str):
        try:
            said = repr(str(value)[:200])
        except (RecursionError, ValueError):  # nested without end, or a number of too many digits
            said = f"a {type(value).__name__} that cannot be shown"
        super().__init__(f"{field}: {said} was given; allowed is {allowed}.")
        self.field, self.value, self.allowed = field, value, allowed


class DeclarationError(BadOption):
    """A declared site does not fit the model: its path, its heads, its tensors or its names."""


class PlanMismatch(WiscaError):
    """A plan or report belongs to another checkpoint, or to a newer format."""


class NothingToRescale(WiscaError):
    """Nothing of what was asked can be rescaled; every refusal is listed in the message."""

    exit_code = 1


class StrictRefusal(WiscaError):
    """Some of what was asked is refused, and all or nothing was asked for; nothing was written."""

    exit_code = 1


class ProofFailed(WiscaError):
    """The rescaled model is not the same function; nothing was written."""

    exit_code = 1


class UnequalStart(WiscaError):
    """Arms of one seed do not start as the same function, so their paired difference would mean nothing."""

    exit_code = 1


class DeviceMissing(WiscaError):
    """A device that was asked for is not on this machine, or cannot do what was asked of it; nothing was started."""


class CheckNotRun(WiscaError):
    """The full check cannot say anything here: too little memory, or transformers cannot run the original itself."""


class OutputRefused(WiscaError):
    """The output folder exists, is the input, is taken by another export, or the disk is full; nothing was left
    behind.
    """


class CheckpointChanged(WiscaError):
    """A weight file changed while it was read."""


class Cancelled(WiscaError):
    """The person cancelled; nothing was left behind."""

    exit_code = 130


def check_choice(name: str, given: object, allowed: Iterable[str]) -> None:
    """Raises BadOption where the option ``name`` was ``given`` as none of ``allowed``."""
    allowed = tuple(allowed)
    if given not in allowed:
        raise BadOption(f"{name}: {given!r} was given; choose from {', '.join(allowed)}.")
