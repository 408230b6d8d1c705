"""Errors a user can act on. Each message reads `where: what was found; what is allowed; what to do`."""


class OpenSoraError(Exception):
    """Printed as one sentence without a traceback; the process exits with `exit_code`."""

    exit_code = 1


class ConfigError(OpenSoraError):
    """A config file, an override or a command line flag is wrong; nothing was loaded yet."""

    exit_code = 2


class DataError(OpenSoraError):
    """A manifest or too many of its rows cannot be used."""


class BadClip(DataError):
    """One row of a manifest cannot be used; the loader skips and counts it, tools report it."""


class CheckpointError(OpenSoraError):
    """A checkpoint is damaged, missing or does not fit the model."""


class WeightsError(OpenSoraError):
    """A weights file does not fit the module it was meant for."""


class TrainingDiverged(OpenSoraError):
    """The loss or the gradient became NaN or infinite."""


class RankLost(OpenSoraError):
    """A rank died or hangs, so the others cannot go on."""
