"""Search hyperparameters: data/raw -> search/{study.journal,trials.csv,best_params.yaml,*.png}."""

from vae.config import Params
from vae.search.workers import join, search
from vae.workflow.stages import RAW, Flags, read_dataset, run_stage


def number_or_auto(text: str) -> int | str:
    """`auto`, or a whole number."""
    return text if text == "auto" else int(text)


FLAGS: Flags = {"search.n_trials": int, "search.epochs": int, "search.workers": number_or_auto}


def main(params: Params, worker: bool) -> None:
    """Bring the study to its number of trials; with `--worker`, beside other machines."""
    (join if worker else search)(params, read_dataset(), RAW)


if __name__ == "__main__":
    run_stage(main, __doc__, FLAGS, worker="work on the study in OPTUNA_STORAGE beside other machines")
