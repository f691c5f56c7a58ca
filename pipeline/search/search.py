"""Search hyperparameters: data/raw -> search/{trials.csv,best_params.yaml,*.png}."""

from vae.config import Params
from vae.search.workers import join, search
from vae.workflow.command_line import RESUMED, run_stage
from vae.workflow.stages import RAW, read_dataset

FLAGS = ("search.n_trials", "search.epochs", "search.workers")


def main(params: Params, worker: bool) -> None:
    """Run the trials that the study lacks; with `--worker`, as one of several machines."""
    (join if worker else search)(params, read_dataset(), RAW)


if __name__ == "__main__":
    run_stage(
        main,
        __doc__,
        FLAGS,
        interrupted=RESUMED,
        worker="work on the study in OPTUNA_STORAGE beside other machines",
    )
