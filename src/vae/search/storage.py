"""Where studies are stored: the project's journal, or the database in OPTUNA_STORAGE that machines share."""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import column, event, make_url, select, table
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from vae.errors import SearchError, hide_passwords, one_line
from vae.files import project_root

CONNECT_SECONDS = 5
RECONNECT_SECONDS = 60  # that a database which was reached before may be gone, for instance to restart
DATABASE_ERRORS = (StorageInternalError, DBAPIError)


def search_folder() -> Path:
    """The project's `search/`, also under `dvc exp run --temp`, where the working directory is a copy."""
    folder = project_root() / "search"
    folder.mkdir(exist_ok=True)
    return folder


def journal_path() -> Path:
    """The journal. Git and DVC ignore it: no checkout and no experiment may revert or delete it."""
    return search_folder() / "study.journal"


def storage_url() -> str:
    """OPTUNA_STORAGE; empty where the journal is used."""
    return os.environ.get("OPTUNA_STORAGE", "")


def open_storage() -> BaseStorage:
    """The database in OPTUNA_STORAGE, or else the journal.

    Raises SearchError where the database can't be reached or the journal is damaged.
    """
    return _open_database(storage_url()) if storage_url() else open_journal()


def open_journal() -> JournalStorage:
    """The journal as an Optuna storage. Raises SearchError where it is damaged."""
    path = journal_path()
    try:
        return JournalStorage(_Journal(path))
    except OSError as error:
        raise SearchError(f"{path} can't be used: {error.strerror}") from None
    except Exception as error:  # replaying a damaged record can raise anything
        raise SearchError(f"{path} is damaged ({type(error).__name__}): move it away to start a new study") from None


class _Journal(JournalFileBackend):
    """Optuna's journal with a lock of the operating system's, which ends with its process, unlike Optuna's lock files.

    Before a record is appended, an incomplete last line (full disk, power loss) is cut off: the new record would
    continue it. A file that has become shorter ends its search.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lock: Any = FileLock(path.with_suffix(".lock"), poll_interval=0.005)
        self._system_lock = lock
        super().__init__(str(path), lock)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from a number on. Raises SearchError if the file was truncated meanwhile."""
        truncated = SearchError(f"{self._path} was truncated while a search was running: start it again")
        end = next(reversed(self._log_number_offset.values()))  # of the last record that was read
        if self._path.stat().st_size < end:
            raise truncated
        try:
            yield from super().read_logs(log_number_from)
        except ValueError:  # it has grown again since: what follows that record's end begins within another one
            if log_number_from:
                raise truncated from None
            raise

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records behind the last complete one."""
        with self._system_lock, self._path.open("rb+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)


def _open_database(url: str) -> RDBStorage:
    try:
        make_url(url)
    except (ArgumentError, ValueError):  # such a URL isn't shown, as its password is hard to find
        raise SearchError("OPTUNA_STORAGE is not a URL such as postgresql://user:password@host/database") from None
    options = {} if url.startswith("sqlite") else {"connect_args": {"connect_timeout": CONNECT_SECONDS}}
    for attempt in range(5):
        try:
            storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **options})
            event.listen(storage.engine, "do_connect", _Reconnection().connect)
            return storage
        except (SQLAlchemyError, ImportError, RuntimeError, StorageInternalError) as error:
            cause = error.__cause__ or error
            # Two processes that create the tables at once disturb each other: one has to try again.
            if attempt < 4 and "exist" in str(cause):
                time.sleep(0.5)
                continue
            hint = " (`pip install 'vae-mnist-pipeline[databases]'`)" if isinstance(error, ImportError) else ""
            raise SearchError(f"OPTUNA_STORAGE {hide_passwords(url)} can't be used: {one_line(cause)}{hint}") from None
    raise AssertionError


class _Reconnection:
    """Connects to a database that was reached before, waiting RECONNECT_SECONDS in all for one that is restarting."""

    def __init__(self) -> None:
        self._lost: float | None = None

    def connect(self, dialect: Any, _: Any, arguments: Any, options: Any) -> Any:
        while True:
            try:
                connection = dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError:
                self._lost = self._lost or time.monotonic()
                if time.monotonic() - self._lost > RECONNECT_SECONDS:
                    raise
                time.sleep(1)
            else:
                self._lost = None
                return connection


@contextmanager
def database_errors_in_one_line() -> Iterator[None]:
    """Raise SearchError for a database that is gone for good."""
    try:
        yield
    except DATABASE_ERRORS as error:
        reason = one_line(error.__cause__ or error)
        raise SearchError(f"the database in OPTUNA_STORAGE was lost: {reason}; the same command resumes") from None


@contextmanager
def exclusive_lock(storage: BaseStorage) -> Iterator[None]:
    """Admit one process at a time, on all machines: counting the trials and taking one belong together."""
    with FileLock(search_folder() / ".trials.lock"):
        if not isinstance(storage, RDBStorage):
            yield
            return
        with storage.engine.begin() as connection:  # a row of Optuna's that nothing else locks
            connection.execute(select(column("version_info_id")).select_from(table("version_info")).with_for_update())
            yield
