"""Fetch and verify the data set: data params -> data/raw, data/dataset.json."""

from vae.config import Params
from vae.workflow.command_line import run_stage
from vae.workflow.stages import fetch_dataset


def main(params: Params) -> None:
    """Keep what is there when it is right, fetch it otherwise."""
    fetch_dataset(params.data)


if __name__ == "__main__":
    run_stage(main, __doc__)
