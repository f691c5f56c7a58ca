"""A small trained model and its explorer page; tests that only read them share both."""

import pytest
from torch.utils.data import DataLoader, TensorDataset

from vae.config import ModelParams, TrainParams
from vae.data.binarization import to_float
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.models.vae import VAE
from vae.serving.explorer.build import save_explorer
from vae.training.loop import fit


@pytest.fixture(scope="session")
def explored(bundled, tmp_path_factory):
    """A model that knows digits, with weights that fp16 has, and the page of it with 1,000 of them."""
    train, validation = split_validation(load(bundled[0], "train"), 500)
    params = TrainParams(epochs=8, batch_size=50, optimizer="adam", device="cpu", precision="fp32", compile=False)
    model = VAE.from_params(ModelParams(hidden_dims=(128,), latent_dim=8, prior_couplings=4, prior_width=16), 0)
    model.initialize_from_data(train.images)
    fit(model, train, validation, params, resolve(params))
    for weights in model.state_dict().values():
        weights.copy_(weights.half().float())
    model.eval()
    test = load(bundled[0], "test")
    loader = DataLoader(TensorDataset(to_float(test.images), test.labels), 200)
    path = tmp_path_factory.mktemp("explorer") / "index.html"
    save_explorer(model, loader, path)
    return model, loader, path
