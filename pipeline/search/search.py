"""Search hyperparameters: data/raw -> search/{trials,finals}.csv, best_params.yaml, *.png; or results/search/STUDY/."""

from pathlib import Path

from vae.config import Params, load_params
from vae.search.report import FOLDER
from vae.search.study import study_name
from vae.search.workers import join, search
from vae.workflow.command_line import RESUMED, run_stage
from vae.workflow.stages import RAW, read_dataset

FLAGS = ("search.n_trials", "search.epochs", "search.workers", "search.finalists")


def main(params: Params, worker: bool) -> None:
    """Run the trials that the study lacks; with `--worker`, as one of several machines."""
    dataset = read_dataset()
    if worker:
        join(params, dataset, RAW)
    else:
        own = params == load_params()
        search(params, dataset, RAW, FOLDER if own else Path("results/search", study_name(params, dataset)))


if __name__ == "__main__":
    run_stage(
        main,
        __doc__,
        FLAGS,
        interrupted=RESUMED,
        worker="work on the study in OPTUNA_STORAGE beside other machines",
    )
