"""The recipes of `make published`, and the published test NLLs that they are compared with.

A recipe has a name, the source of the published NLL, and the parameters that differ from the defaults of config.py.
All choices were made on validation images; the test set was evaluated once, at the end.
"""

from dataclasses import dataclass, field
from typing import Any

from vae.config import Params

Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A training, and the published test NLL (nats per image) that it is compared with."""

    name: str
    source: str
    published: float
    published_samples: int  # importance samples an image
    values: Values = field(default_factory=dict)
    seeds: int = 1
    optional: bool = False  # not part of a plain `make published`

    @property
    def params(self) -> Params:
        """All parameters."""
        return Params().replaced(self.values)


# Burda et al. 2016, section 5 and appendix: network, initialization, and 400 of the 60,000 images for validation.
IWAE_PAPER: Values = {
    "data.validation_size": 400,
    "model.hidden_dims": (200, 200),
    "model.latent_dim": 50,
    "model.activation": "tanh",
    "model.residual": False,
    "model.initialization": "xavier",
    "model.prior": "standard",
    "train.epochs": 328,
    "train.batch_size": 200,
    "train.optimizer": "muon",
    "train.learning_rate": 2e-3,
    "train.muon_learning_rate": 5e-3,
    "evaluate.importance_samples": 5000,
}


def importance_weighted(k: int) -> Values:
    """The importance-weighted bound of `k` samples, with the encoder's gradient of Tucker et al. 2019."""
    return {"train.objective": "iwae", "train.importance_samples": k, "train.doubly_reparameterized": True}


# One stochastic layer, fully connected: the default model with gated linear units, which gain 0.4 nats.
MLP: Values = {
    "data.validation_size": 1000,
    "model.activation": "glu",
    "train.epochs": 70,
    "train.elbo_epochs": 55,
    **importance_weighted(5),
    "evaluate.importance_samples": 1000,
}

# One stochastic layer, convolutional. Muon trains the kernels, which gains 2 nats over Adam in the first minutes.
# With ReLU, with PyTorch's initialization or without KL warm-up, the decoder of a short training ignores the latents.
CONV: Values = {
    "data.validation_size": 1000,
    "model.architecture": "conv",
    "model.hidden_dims": (16, 32, 32),
    "model.dense_dims": (256, 256),
    "model.initialization": "orthogonal",
    "train.optimizer": "muon",
    "train.learning_rate": 2e-3,
    "train.batch_size": 128,
    "train.max_grad_norm": 200.0,
    "train.kl_warmup_epochs": 2,
    "train.epochs": 120,
    "train.elbo_epochs": 90,
    **importance_weighted(5),
    "train.compile": True,
    "evaluate.importance_samples": 1000,
    "evaluate.chunk_size": 512,  # larger ones exceed the processor's cache and take 1.4 times as long
}

# Three stochastic layers: 32 latents, and twice 2 at each of 7×7 positions below them.
LADDER: Values = CONV | {
    "model.latent_dim": 32,
    "model.lower_latent_dims": (2, 2),
    "train.learning_rate": 1e-3,  # with twice these rates, it diverged after 41 epochs
    "train.muon_learning_rate": 3e-3,
    "train.epochs": 100,
    "train.elbo_epochs": 80,
    "train.doubly_reparameterized": False,  # not for several layers
}

# For a GPU; it has never been run to its end.
LARGE: Values = {
    "model.hidden_dims": (64, 128, 128, 128),
    "model.dense_dims": (512, 512),
    "model.lower_latent_dims": (8,),
    "train.batch_size": 256,
    "train.epochs": 500,
    "train.elbo_epochs": 480,
    "evaluate.importance_samples": 5000,
    "evaluate.chunk_size": 4096,
}

BURDA = "Burda et al. 2016, table 1: {}, 784-200-200-50, 3,280 epochs"
TOMCZAK = "Tomczak & Welling 2018, table {}, ≤ 2,000 epochs"
KINGMA = "Kingma et al. 2016, table 1: VAE, convolutional ResNet, diagonal posterior, standard prior"
IWAE_K50 = IWAE_PAPER | importance_weighted(50)
STANDARD = MLP | {"model.prior": "standard"}

RECIPES = (
    Recipe("iwae-paper-vae", BURDA.format("VAE"), 86.76, 5000, IWAE_PAPER, seeds=3),
    Recipe("iwae-paper-k5", BURDA.format("IWAE, k = 5"), 85.54, 5000, IWAE_PAPER | importance_weighted(5), seeds=3),
    Recipe("iwae-paper-k50", BURDA.format("IWAE, k = 50"), 84.78, 5000, IWAE_K50, optional=True),
    Recipe("mlp-standard", TOMCZAK.format("1: VAE, gated MLP, standard prior"), 84.50, 5000, STANDARD, seeds=3),
    Recipe("mlp", TOMCZAK.format("1: VAE, gated MLP, VampPrior"), 82.38, 5000, MLP, seeds=3),
    Recipe("conv", KINGMA, 81.08, 128, CONV),
    Recipe("ladder", TOMCZAK.format("2: ConvHVAE, VampPrior"), 79.75, 5000, LADDER),
    Recipe("ladder-gpu", TOMCZAK.format("2: ConvHVAE, VampPrior"), 79.75, 5000, LADDER | LARGE, optional=True),
)


# The recipes of the speed run: a common one, and the defaults, the best ones known for a few minutes on a CPU.
PLAIN = Params().replaced(
    {
        "data.validation_size": 5000,
        "model.hidden_dims": (400,),
        "model.latent_dim": 20,
        "model.activation": "relu",
        "model.residual": False,
        "model.prior": "standard",
        "train.optimizer": "adam",
        "train.batch_size": 128,
        "train.learning_rate": 1e-3,
        "train.lr_schedule": "constant",
        "train.epochs": 128,
    }
)
QUICK = Params().replaced({"data.validation_size": 1000})
