"""The study of β and the mutual information gap, at a tiny size."""

import pandas as pd
import pytest

from vae.examples.disentanglement import main


@pytest.mark.filterwarnings("ignore:the validation −ELBO")  # of models that were hardly trained
def test_the_study_writes_a_row_for_each_training_and_the_traversals_of_each_beta(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["--betas", "1", "50", "--seeds=2", "--epochs=1", "--count=200"])
    folder = tmp_path / "results/examples/disentanglement"
    table = pd.read_csv(folder / "table.csv")
    assert table[["beta", "seed"]].values.tolist() == [[1, 0], [1, 1], [50, 0], [50, 1]]
    factors = table[["shape", "hue", "size", "x", "y"]]
    assert table["mig"].tolist() == pytest.approx(factors.mean(axis=1).tolist(), rel=2e-3)
    assert table["neg_elbo"].tolist() == pytest.approx((table["reconstruction"] + table["kl"]).tolist(), rel=2e-3)
    assert factors.nunique().min() > 1  # each training has a model of its own
    assert {path.name for path in folder.glob("*.png")} == {"traversals_beta_1.png", "traversals_beta_50.png"}
    assert "std" in capsys.readouterr().out
