"""Search hyperparameters: data/raw -> search/{study.journal,trials.csv,best_params.yaml,*.png}."""

from vae.config import Params
from vae.search.workers import join, search
from vae.workflow.command_line import run_stage
from vae.workflow.stages import RAW, read_dataset

FLAGS = ("search.n_trials", "search.epochs", "search.workers")


def main(params: Params, worker: bool) -> None:
    """Bring the study to its number of trials; with `--worker`, beside other machines."""
    (join if worker else search)(params, read_dataset(), RAW)


if __name__ == "__main__":
    run_stage(main, __doc__, FLAGS, worker="work on the study in OPTUNA_STORAGE beside other machines")
