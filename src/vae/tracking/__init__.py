"""MLflow: its store (`store`), runs that lose nothing (`run`), and what each kind of run carries (`kinds`)."""

import os

# Defaults, set here since MLflow reads some of them when it is imported: a server that does not answer is given up
# after seconds, not minutes; `Retry-After`, which has no limit, is not obeyed; nothing is reported home; no URL, which
# may hold a password, is printed at the end of a run or logged again and again with each error.
os.environ |= {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
    **os.environ,
}

import mlflow

from vae.tracking.kinds import end_dead_trial, log_search, log_settings, new_search, resume, run_name, trial_run
from vae.tracking.run import Run, open_run, sync, tolerant
from vae.tracking.store import EXPERIMENT, SEARCH_EXPERIMENT, connect, shown_store, tracking_uri

__all__ = ["EXPERIMENT", "SEARCH_EXPERIMENT", "Run", "connect", "end_dead_trial", "log_search", "log_settings"]
__all__ += ["mlflow", "new_search", "open_run", "resume", "run_name", "shown_store", "sync", "tolerant", "tracking_uri"]
__all__ += ["trial_run"]
