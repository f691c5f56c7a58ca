"""What can go wrong through no fault of the code: each message is one line that names the thing."""

import re


class VAEError(Exception):
    """Base of every error that a user can cause; stages print it as one line and exit with 1."""


class ConfigError(VAEError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(VAEError, ValueError):
    """An image file or a batch is missing, damaged or not what it should be."""


class DownloadError(VAEError):
    """No source could deliver the data set; the message lists each one that was tried, and how it failed."""


class WeightsError(VAEError, ValueError):
    """A weights file can't be read, or belongs to another model."""


class DivergedError(VAEError):
    """The training loss stopped being finite."""


class TrackingError(VAEError):
    """The MLflow store can't be reached."""


class SearchError(VAEError):
    """The hyperparameter search can't go on: its storage, its workers or its first trials failed."""


def hide_passwords(text: str) -> str:
    """`text` with the credentials of each URL in it replaced by `***`."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(?i)([?&][\w.-]*(?:password|passwd|secret|token|signature|key)[\w.-]*=)[^&\s'\"]+", r"\1***", text)


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters, without passwords and SQLAlchemy's statement."""
    return hide_passwords(" ".join(str(error).split("[SQL:")[0].split()))[:300]
