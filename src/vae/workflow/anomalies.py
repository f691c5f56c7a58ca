"""`make anomalies`: how well the trained model tells other images from test images."""

from pathlib import Path

import pandas as pd
from torch import Tensor

from vae.config import Binarization, DataParams, DatasetName, Params, load_params
from vae.data.binarization import binarize_once
from vae.data.datasets import load
from vae.device import resolve
from vae.errors import DownloadError
from vae.evaluation.anomalies import altered_images, anomaly_scores, auroc
from vae.files import write_atomically
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import fetch_dataset, load_model, some_test_images

OUTPUT = Path("results/anomalies.csv")
OTHERS: tuple[DatasetName, ...] = ("MNIST", "FashionMNIST", "KMNIST")
OTHERS_SHAPE = (1, 28, 28)
IMAGES = 1000  # of each kind


def compare_scores(params: Params) -> pd.DataFrame:
    """The AUROC of each score for each kind of anomaly: altered test images, and other data sets' if available.

    Other data sets are of grey images of 28×28 pixels; a model of other images is compared with altered ones only.
    """
    device = resolve(params.train).device
    model = load_model(params, device)
    images = some_test_images(params, 2 * IMAGES)
    normal, others = images[::2], images[1::2]
    kinds = altered_images(others, model.image_shape, seed=params.seed)
    if model.image_shape == OTHERS_SHAPE:
        kinds |= {
            name: found
            for name in OTHERS
            if name != params.data.name and (found := other_images(name, params.data.binarization)) is not None
        }
    print(f"scoring {len(normal):,} test images and {len(kinds)} times as many others")
    scores = {
        name: anomaly_scores(model, part.to(device), params.evaluate, seed=params.seed)
        for name, part in {"normal": normal, **kinds}.items()
    }
    rows = {name: {**auroc(scores["normal"], scores[name]), "mean NLL": scores[name]["NLL"].mean()} for name in kinds}
    table = pd.DataFrame(rows).T.rename_axis("anomaly")
    print(f"AUROC; the mean NLL of test images is {scores['normal']['NLL'].mean():.1f}")
    return table


def other_images(name: DatasetName, binarization: Binarization) -> Tensor | None:
    """Test images of another data set, binarized; None, with a line that says why, where it can't be downloaded."""
    folder = Path("results/data") / name
    try:
        fetch_dataset(DataParams(dataset=name, source="mirror"), folder, folder / "dataset.json")
    except DownloadError as error:
        print(f"left out: {error}")
        return None
    return binarize_once(load(folder, "test").images[:IMAGES], binarization)


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        ArgumentParser(__doc__).parse_args()
        table = compare_scores(load_params())
        write_atomically(OUTPUT, table.to_csv(float_format="%.4f"))
        print(table.to_string(float_format="{:.2f}".format))
        print(OUTPUT)
