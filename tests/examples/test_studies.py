"""The five studies in quick mode: their tables, figures and files, their claims, and the command line."""

from copy import copy

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from vae.data.datasets import Split, load
from vae.examples.studies import EXAMPLES, PROTOCOL, QUICK, VAEExamples, main
from vae.examples.techniques import BASELINE, compared, techniques

FIGURE_NAMES = {
    "1": {"history", "reconstructions", "samples", "latent_space", "kl_per_dimension"},
    "2": {"rate_distortion", "reconstructions", "samples"},
    "3": {"linear", "spherical", "arithmetic_8-3+1", "arithmetic_9-4+6"},
    "4": {"active_units", "reconstructions", "samples", "manifold", "latent_space_2"},
    "5": {"differences", "validation_curves"},
}


@pytest.fixture(scope="module")
def digits(bundled):
    return load(bundled[0], "train"), load(bundled[0], "test")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def studies(digits, output):
    """Each study, run when it is first requested."""
    examples, done = VAEExamples("cpu", quick=True, output=output, data=digits), {}
    shorter = copy(examples)  # for 34 trainings that only have to differ
    shorter.train = Split(examples.train.images[:500], examples.train.labels[:500])

    def study(number):
        if number not in done:
            done[number] = EXAMPLES[number](shorter if number == "5" else examples)
        return done[number]

    return study


# Results and files


@pytest.mark.parametrize("number", list(EXAMPLES))
def test_a_study_returns_and_saves_its_table_and_figures(number, studies, output):
    example = studies(number)
    numbers = example.table.select_dtypes("number")
    assert np.isfinite(numbers.to_numpy()).all()
    assert list(example.table.columns[-len(PROTOCOL) :]) == PROTOCOL
    assert set(example.figures) == FIGURE_NAMES[number]
    (folder,) = output.glob(f"{number}_*")
    assert {path.name for path in folder.iterdir()} == {"table.csv", *(f"{name}.png" for name in FIGURE_NAMES[number])}
    saved = pd.read_csv(folder / "table.csv")
    assert list(saved.columns) == list(example.table.columns)
    assert np.allclose(saved[numbers.columns], numbers, rtol=1e-4)
    for path in folder.glob("*.png"):
        assert matplotlib.image.imread(path)[..., :3].std() > 0.05, f"{path} is empty"


def test_training_validation_and_test_images_are_disjoint(digits, tmp_path):
    examples = VAEExamples("cpu", quick=True, output=tmp_path, data=digits)
    parts = examples.train, examples.validation, examples.test
    assert [len(part) for part in parts] == [QUICK.train_images, QUICK.validation_images, 1000]
    train, validation, test = ({bytes(image.numpy()) for image in part.images} for part in parts)
    assert not train & validation and not train & test and not validation & test


# Claims


def test_basic_training_learns_the_given_digits(studies):
    (row,) = studies("1").table.to_dict("records")
    assert row["epochs"] == 2 * QUICK.epochs
    assert row["neg_elbo"] < 200
    assert row["data"] == "given"


def test_the_rate_falls_and_distortion_and_blur_rise_with_beta(studies):
    table = studies("2").table
    assert tuple(table["beta"]) == QUICK.betas
    assert table["kl"].is_monotonic_decreasing
    assert table["reconstruction"].is_monotonic_increasing
    assert table["pixel_entropy"].is_monotonic_increasing


def test_each_technique_has_a_row_and_a_difference_from_the_baseline(studies):
    table, changes = studies("5").table, [change for group in techniques(QUICK).values() for change in group]
    assert list(table["change"]) == changes
    baseline = table.iloc[0]
    assert (baseline["change"], baseline["verdict"]) == (BASELINE, BASELINE)
    np.testing.assert_allclose(table["difference"], table["neg_elbo"] - baseline["neg_elbo"], atol=1e-4)
    assert list(table["difference"] == 0) == [change == BASELINE for change in changes], "a technique has no effect"


def test_a_difference_counts_beyond_three_standard_errors_of_the_median_spread_and_of_its_own():
    values = {
        BASELINE: (100.0, 101.0),
        "better": (95.0, 96.0),
        "lucky": (99.5, 101.5),
        "worse": (104.0, 107.0),
        "fails for a seed": (100.0, 121.0),
        "slightly": (101.0, 102.5),
    }
    runs = pd.DataFrame(
        {"group": name, "change": name, "seed": seed, "neg_elbo": value}
        for name, pair in values.items()
        for seed, value in enumerate(pair)
    )
    table, each = compared(runs)
    assert list(table["difference"]) == [0, -5, 0, 5, 10, 1.25]
    assert list(table["spread"]) == pytest.approx([0, 0, 0.5**0.5, 2**0.5, 200**0.5, 0.125**0.5])
    assert table["noise"].unique() == pytest.approx([3 * 0.5**0.5 / 2**0.5])
    assert list(table["verdict"]) == [BASELINE, "better", "within noise", "worse", "within noise", "within noise"]
    assert list(each["difference"]) == [0, 0, -5, -5, -0.5, 0.5, 4, 6, 0, 20, 1, 1.5]


# The command line


def test_the_command_line_runs_a_study_on_the_bundled_digits_and_prints_its_table(tmp_path, capsys):
    main(["1", "--quick", "--device", "cpu", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "example_1_basic_training on MNIST-bundled-5000" in printed
    assert "data: MNIST-bundled-5000, train_images: 2000, test_images: 1000, nll_images: 100" in printed
    assert "neg_elbo" in printed
    assert (tmp_path / "1_basic_training" / "table.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2", "two"], "error: unknown example two, allowed are 1, 2, 3, 4, 5"),
        (["1", "--quick", "--device", "gpu"], "error: device is 'gpu', allowed is "),
    ],
)
def test_a_mistake_ends_in_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--output", str(tmp_path)])
    printed = capsys.readouterr().err.strip() or str(caught.value)
    assert printed.startswith(message)
    assert "\n" not in printed
    assert not list(tmp_path.iterdir())
