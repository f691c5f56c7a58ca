"""A run in MLflow that loses nothing, whatever happens to MLflow meanwhile.

What MLflow does not take is kept in `mlruns/unsynced/`. It is logged by the run's next call, or else by `sync`: at the
start of the next stage, or by `make sync`.
"""

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking.context.registry import resolve_tags
from PIL import Image

from vae.errors import TrackingError, hide_passwords, one_line
from vae.files import project_root, write_atomically
from vae.tracking.store import EXPERIMENT, MLFLOW_ERRORS, experiment_id, shown_store, store_id, tracking_uri, ui_link

BACKOFF = 10  # times the duration of a failed attempt without another one: they cost at most a tenth of the time
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
LONGEST_NAME = 250  # of a run, that MLflow's database takes
NO_SUCH_RUN = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
KEY = "run.key"  # the tag by which a run is found whose creation succeeded although it seemed to fail


def unsynced() -> Path:
    """Where runs keep what MLflow has yet to take, each in a folder of its own."""
    return project_root() / "mlruns" / "unsynced"


def _now() -> int:
    return int(time.time() * 1000)


@dataclass
class Run:
    """A run in MLflow, and what MLflow has yet to take of it, which is also its `run.json` in `mlruns/unsynced/<key>/`.

    Logging never raises MLflow's errors. What is logged twice with the same time is in MLflow once.
    """

    name: str
    id: str = ""  # empty: it is yet to be created
    experiment: str = EXPERIMENT
    store: str = field(default_factory=store_id)
    key: str = field(default_factory=lambda: uuid4().hex)
    start_time: int = field(default_factory=_now)  # in milliseconds, as all times
    end_time: int | None = None
    status: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # name, value, time, step
    dataset: list[str] | None = None
    artifacts: list[tuple[str, Any]] = field(default_factory=list)  # file, and folder or what log_image gets

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters. Those that the run has can't change."""
        self.params |= {name: hide_passwords(str(value)) for name, value in params.items()}
        self._log()

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self.tags |= {name: hide_passwords(str(value)) for name, value in tags.items()}
        self._log()

    def log_metrics(self, metrics: Mapping[str, Any], prefix: str = "", step: int = 0) -> None:
        """Add the numbers among `metrics`, under `prefix`."""
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        self.metrics += [(f"{prefix}{name}", value, _now(), step) for name, value in numbers.items()]
        self._log()

    def log_dataset(self, name: str, digest: str, folder: Path | str) -> None:
        """Add the data set that the run trains on, and that is in `folder`."""
        self.dataset = [name, digest, "local", json.dumps({"uri": str(folder)})]
        self._log()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Add a file."""
        self.artifacts.append((str(path.absolute()), folder))
        self._log()

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Add a picture, which MLflow shows beside those of other steps."""
        path = self._folder / f"{name}-{step}.png"
        with suppress(OSError):  # a full disk
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            self.tags["mlflow.loggedImages"] = "True"  # MLflow sets it last: a failure then would log the file again
            self.artifacts.append((path.name, {"key": name, "step": step, "timestamp": _now()}))
        self._log()

    def log_model(self, save: Callable[[Path], object]) -> None:
        """Add an MLflow Model, which `save` writes to the folder that it gets, unless the run has one."""
        path = self._folder / "model"
        try:
            shutil.rmtree(path, ignore_errors=True)
            save(path)
            self.artifacts.append((path.name, None))
        except MLFLOW_ERRORS as error:  # a full disk
            warn_once("the model is not logged to MLflow", error)
        self._log()

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.status, self.end_time = status, _now()
        self._log()

    def last_step(self, metric: str) -> int:
        """The last step of `metric` in MLflow, 0 if there is none. Raises TrackingError if MLflow is in trouble."""
        try:
            return max((point.step for point in MlflowClient().get_metric_history(self.id, metric)), default=0)
        except MLFLOW_ERRORS as error:
            raise TrackingError(f"run {self.id} can't be read: {one_line(error)}") from None

    def create(self) -> None:
        """Create the run, unless that was done in an attempt that seemed to fail. Raises one of MLFLOW_ERRORS."""
        client, experiment = MlflowClient(), experiment_id(self.experiment)
        created = client.search_runs([experiment], f"tags.`{KEY}` = '{self.key}'")
        tags = resolve_tags({**self.tags, KEY: self.key})
        run = created[0] if created else client.create_run(experiment, self.start_time, tags, self.name[:LONGEST_NAME])
        self.id = run.info.run_id

    def _log(self) -> None:
        if time.monotonic() >= _Attempts.next:
            with tolerant():
                return self.log_pending()
        self._keep()

    def log_pending(self) -> None:
        """Log what MLflow has yet to take. Raises one of MLFLOW_ERRORS."""
        client = MlflowClient()
        if not self.id:
            self.create()
        entries = [Param(*item) for item in self.params.items()], [RunTag(*item) for item in self.tags.items()]
        self._log_entries([*entries[0], *entries[1], *(Metric(*metric) for metric in self.metrics)])
        self.params, self.tags, self.metrics = {}, {}, []
        if self.dataset:
            training = InputTag("mlflow.data.context", "training")
            client.log_inputs(self.id, [DatasetInput(Dataset(*self.dataset), [training])])
            self.dataset = None
        if self.status:
            client.set_terminated(self.id, self.status, self.end_time)
            self.status = None
        while self.artifacts:  # last: they are large, and stored elsewhere
            path, folder = self._folder / self.artifacts[0][0], self.artifacts[0][1]
            if path.is_dir():
                self._log_model(path)
            elif path.exists() and isinstance(folder, dict):
                client.log_image(self.id, Image.open(path), **folder)
            elif path.exists():
                client.log_artifact(self.id, str(path), folder)
            del self.artifacts[0]
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log_model(self, folder: Path) -> None:
        """Log the MLflow Model in `folder` with the run's test metrics, unless an earlier attempt has done so."""
        client = MlflowClient()
        run = client.get_run(self.id)
        if run.outputs and run.outputs.model_outputs:
            return
        experiment, params = run.info.experiment_id, run.data.params
        described = {name: text for name, text in run.data.tags.items() if name == "mlflow.note.content"}
        begun = client.search_logged_models([experiment], f"source_run_id = '{self.id}'")
        model = begun[0] if begun else client.create_logged_model(experiment, "vae", self.id, described, params)
        saved = Model.load(str(folder))
        saved.run_id, saved.model_id, saved.model_uuid = self.id, model.model_id, model.model_id
        saved.save(str(folder / "MLmodel"))
        client.log_model_artifacts(model.model_id, str(folder))
        metrics = [metric for metric in run.data._metric_objs if metric.key.startswith("test/")]
        of_model = [Metric(m.key, m.value, m.timestamp, m.step, model.model_id, run_id=self.id) for m in metrics]
        client.log_batch(self.id, of_model)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self.id, [LoggedModelOutput(model.model_id, step=0)])

    def _log_entries(self, entries: Sequence[Param | RunTag | Metric]) -> None:
        """Log the entries but for those that MLflow refuses, which are found by halving."""
        kinds = {"metrics": Metric, "params": Param, "tags": RunTag}
        batch: dict[str, Any] = {name: [e for e in entries if isinstance(e, kind)] for name, kind in kinds.items()}
        try:
            MlflowClient().log_batch(self.id, **batch)
        except MlflowException as error:
            if error.error_code not in REFUSALS or not exists(self.id):
                raise
            if len(entries) > 1:
                self._log_entries(entries[: len(entries) // 2])
                self._log_entries(entries[len(entries) // 2 :])
            else:
                warn_once(f"MLflow refuses {entries[0].key}, which is left out", error)

    @property
    def _folder(self) -> Path:
        return unsynced() / self.key

    def _keep(self) -> None:
        """Write what is pending to the folder, with copies of artifacts, which the next training may overwrite."""
        try:
            for number, (path, folder) in enumerate(self.artifacts):
                if Path(path).is_absolute():
                    copy = Path("artifacts", folder or "", Path(path).name)
                    (self._folder / copy).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self._folder / copy)
                    self.artifacts[number] = (str(copy), folder)
            write_atomically(self._folder / "run.json", json.dumps(asdict(self), indent=1))
        except OSError as error:  # a full disk: it stays in memory
            warn_once(NOT_TRACKED, error)


def sync() -> list[Path]:
    """Log what runs of earlier processes could not. Returns the folders that remain.

    They do if MLflow is in trouble, if the run is deleted or of another store, or if the folder is damaged.
    """
    if unsynced().exists():
        with suppress(Timeout), FileLock(unsynced() / ".lock", blocking=False):
            for path in unsynced().glob("*/run.json"):
                with suppress(OSError, ValueError, TypeError):
                    _log_kept(Run(**json.loads(path.read_text())))
                if _Attempts.next - time.monotonic() > BACKOFF:  # it took more than a second to fail
                    break
    return sorted(path.parent for path in unsynced().glob("*/run.json"))


def _log_kept(run: Run) -> None:
    with tolerant():
        if not run.id and run.store == store_id():
            run.status = run.status or "KILLED"
            run.log_pending()
        elif run.id and exists(run.id):
            run.log_pending()


def exists(run_id: str) -> bool:
    """Whether the store has the run, not deleted. Raises one of MLFLOW_ERRORS if that can't be known."""
    try:
        return bool(MlflowClient().get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in NO_SUCH_RUN:
            return False
        raise


@contextmanager
def open_run(name: str, run_id: str = "", experiment: str = EXPERIMENT, *, required: bool = True) -> Iterator[Run]:
    """Open the run `run_id`, or a new one called `name` if there is no such run, as MLflow's active run.

    It ends as FINISHED, as FAILED after an error, and as KILLED after Ctrl-C or a termination. Raises TrackingError if
    it is required and can't be opened; if it is not required, it is then kept until it can be logged. The link of a
    finished run is printed.
    """
    sync()
    opened, link = Run(name, run_id, experiment), ""
    try:
        if run_id and not exists(run_id):
            print(f"warning: run {run_id} is not in {shown_store()}: opening a new one", file=sys.stderr)
            opened.id = ""
        if not opened.id:
            opened.create()
        started = mlflow.start_run(opened.id, log_system_metrics=True)
        link = ui_link(started.info.experiment_id, opened.id)
    except MLFLOW_ERRORS as error:
        if required:
            raise TrackingError(f"no run can be opened in {shown_store()}: {one_line(error)}") from None
        warn_once(NOT_TRACKED, error)
    with ending(opened):
        yield opened
    if link:
        hint = "" if tracking_uri().startswith("http") else " (`make ui` serves it)"
        print(f"MLflow run{hint}:\n  {link}", flush=True)


@contextmanager
def ending(run: Run) -> Iterator[Run]:
    """End the run with the block."""
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if (active := mlflow.active_run()) and active.info.run_id == run.id:
            with tolerant():
                mlflow.end_run(status)  # also ends the measurement of system metrics
        run.end(status)


class _Attempts:
    """Of this process: what was reported, and when the next attempt may be made."""

    reported: ClassVar[set[str]] = set()
    next = 0.0


NOT_TRACKED = "not tracked in MLflow for now"


@contextmanager
def tolerant() -> Iterator[None]:
    """Turn MLflow's errors into one warning a process: a training is worth more than its log."""
    started = time.monotonic()
    try:
        with _uninterrupted():
            yield
        _Attempts.next = 0.0
    except (*MLFLOW_ERRORS, TrackingError) as error:
        failed = time.monotonic()
        _Attempts.next = failed + BACKOFF * (failed - started)
        warn_once(NOT_TRACKED, error)


def warn_once(warning: str, error: BaseException) -> None:
    """Print a warning once a process."""
    if warning not in _Attempts.reported:
        print(f"warning: {warning}: {one_line(error)}", file=sys.stderr)
    _Attempts.reported.add(warning)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and termination until the end of the block: an interrupted transaction would leave SQLite locked."""
    if threading.current_thread() is not threading.main_thread():  # no signal interrupts it
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
