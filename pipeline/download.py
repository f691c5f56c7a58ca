"""Download and verify the data set: data params -> data/raw, data/dataset.json."""

from vae.config import Params
from vae.workflow.command_line import run_stage
from vae.workflow.stages import fetch_dataset


def main(params: Params) -> None:
    """Download the data set unless it is there already."""
    fetch_dataset(params.data)


if __name__ == "__main__":
    run_stage(main, __doc__, flags=())
