"""User-facing exceptions: each message is one line that says what is wrong, where, and what to do."""

import re


class VAEError(Exception):
    """Base class of all errors that a user can cause; commands print the message and exit with 1."""


class ConfigError(VAEError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(VAEError, ValueError):
    """An image file or a batch is missing, damaged or of the wrong kind."""


class DownloadError(VAEError):
    """No source delivered the data set; the message lists each source and why it failed."""


class WeightsError(VAEError, ValueError):
    """A weights file can't be read, or doesn't match the model."""


class DivergedError(VAEError):
    """The training loss is no longer finite."""


class ProcessError(VAEError):
    """One of the processes of a data-parallel training was killed, or does not answer."""


class TrackingError(VAEError):
    """The MLflow store can't be reached."""


class RegistryError(VAEError):
    """A registered model, version or alias is not there or damaged, or two versions can't be compared."""


class SearchError(VAEError):
    """The hyperparameter search can't continue: its storage, its workers or too many trials failed."""


def hide_passwords(text: str) -> str:
    """`text` with the credentials of each URL in it replaced by `***`."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(?i)([?&][\w.-]*(?:password|passwd|secret|token|signature|key)[\w.-]*=)[^&\s'\"]+", r"\1***", text)


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters, without passwords and SQLAlchemy's statement."""
    return hide_passwords(" ".join(str(error).split("[SQL:")[0].split()))[:300]
