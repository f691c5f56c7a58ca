"""A variational autoencoder on MNIST: the library behind the pipeline.

Names are imported when they are first used: torch costs seconds, and reading params.yaml doesn't need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.config import Params, load_params
    from vae.evaluation import evaluate
    from vae.model import VAE
    from vae.trainer import VAETrainer
    from vae.training import fit
    from vae.visualize import (
        generate_samples,
        latent_means,
        visualize_interpolation,
        visualize_latent_arithmetic,
        visualize_latent_manifold,
        visualize_latent_space,
        visualize_reconstruction,
    )

_HOME = {
    "Params": "vae.config",
    "load_params": "vae.config",
    "evaluate": "vae.evaluation",
    "VAE": "vae.model",
    "VAETrainer": "vae.trainer",
    "fit": "vae.training",
    "generate_samples": "vae.visualize",
    "latent_means": "vae.visualize",
    "visualize_interpolation": "vae.visualize",
    "visualize_latent_arithmetic": "vae.visualize",
    "visualize_latent_manifold": "vae.visualize",
    "visualize_latent_space": "vae.visualize",
    "visualize_reconstruction": "vae.visualize",
}

__all__ = [
    "VAE",
    "Params",
    "VAETrainer",
    "evaluate",
    "fit",
    "generate_samples",
    "latent_means",
    "load_params",
    "visualize_interpolation",
    "visualize_latent_arithmetic",
    "visualize_latent_manifold",
    "visualize_latent_space",
    "visualize_reconstruction",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vae' has no attribute {name!r}")
