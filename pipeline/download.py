"""Fetch and verify the data set: data params -> data/raw, data/dataset.json."""

from vae.config import Params
from vae.errors import DataError
from vae.fetch import fetch
from vae.files import write_json
from vae.stages import DATASET, RAW, mnist_dir, read_dataset, run_stage


def main(params: Params) -> None:
    """Keep what is there when it is right, fetch it otherwise."""
    try:
        earlier = read_dataset()
    except DataError:
        earlier = None
    RAW.mkdir(parents=True, exist_ok=True)
    record = fetch(params.data, mnist_dir(), RAW, earlier)
    write_json(DATASET, record)
    counts = ", ".join(f"{count:,} {part}" for part, count in record["counts"].items())
    print(f"{record['name']}: {counts} images, verified (source: {record['source']})")


if __name__ == "__main__":
    run_stage(main, __doc__)
