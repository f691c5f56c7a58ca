"""How fast pythae 0.1.2 trains 784-400-20, and estimates its NLL: a process of its own, for `make bench PEERS=1`.

`python benchmarks/peers.py IMAGES.npy` prints both rates as JSON. speed.py installs pythae for it.
"""

import json
import logging
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found,unused-ignore]
from pythae.models import VAE, VAEConfig  # type: ignore[import-not-found,unused-ignore]
from pythae.models.base.base_utils import ModelOutput  # type: ignore[import-not-found,unused-ignore]
from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore[import-not-found,unused-ignore]
from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor, nn

EPOCHS, BATCH = 2, 128
IMAGES, SAMPLES, SAMPLES_AT_ONCE = 4, 5000, 1000


class Encoder(BaseEncoder):  # type: ignore[misc,unused-ignore]
    """784-400-20, as `small_vae` in speed.py."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: Tensor) -> Any:
        """[B, 1, 28, 28] -> mean and log-variance."""
        h = self.hidden(x.flatten(1)).relu()
        return ModelOutput(embedding=self.mu(h), log_covariance=self.logvar(h))


class Decoder(BaseDecoder):  # type: ignore[misc,unused-ignore]
    """20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.pixels = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, z: Tensor) -> Any:
        """[B, 20] -> probabilities."""
        return ModelOutput(reconstruction=self.pixels(self.hidden(z).relu()).sigmoid().view(-1, 1, 28, 28))


def main() -> None:
    """Measure, and print."""
    logging.disable(logging.WARNING)
    images = torch.from_numpy(np.load(sys.argv[1])).float().div(255).view(-1, 1, 28, 28)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    model = VAE(config, Encoder(), Decoder())
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            folder, num_epochs=EPOCHS, per_device_train_batch_size=BATCH, no_cuda=True, learning_rate=1e-3
        )
        data = BaseDataset(images, torch.zeros(len(images)))
        BaseTrainer(model, BaseDataset(images[:BATCH], torch.zeros(BATCH)), training_config=settings).train()
        trainer = BaseTrainer(model, data, training_config=settings)
        started = time.perf_counter()
        trainer.train()
        train = EPOCHS * len(images) / (time.perf_counter() - started)
    model.eval()
    with torch.no_grad():
        started = time.perf_counter()
        model.get_nll(images[:IMAGES], SAMPLES, SAMPLES_AT_ONCE)
        nll = IMAGES * SAMPLES / (time.perf_counter() - started)
    print(json.dumps({"train": train, "nll": nll}))


if __name__ == "__main__":
    main()
