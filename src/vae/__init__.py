"""A variational autoencoder on MNIST: the library behind the pipeline.

Names are imported when they are first used: torch costs seconds, and reading params.yaml doesn't need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.config import Params, load_params
    from vae.evaluation.likelihood import evaluate
    from vae.models.vae import VAE
    from vae.plots.visualize import (
        generate_samples,
        latent_means,
        visualize_interpolation,
        visualize_latent_arithmetic,
        visualize_latent_manifold,
        visualize_latent_space,
        visualize_reconstruction,
    )
    from vae.training.loop import fit
    from vae.training.trainer import VAETrainer

_HOME = {
    "Params": "vae.config",
    "load_params": "vae.config",
    "evaluate": "vae.evaluation.likelihood",
    "VAE": "vae.models.vae",
    "VAETrainer": "vae.training.trainer",
    "fit": "vae.training.loop",
    "generate_samples": "vae.plots.visualize",
    "latent_means": "vae.plots.visualize",
    "visualize_interpolation": "vae.plots.visualize",
    "visualize_latent_arithmetic": "vae.plots.visualize",
    "visualize_latent_manifold": "vae.plots.visualize",
    "visualize_latent_space": "vae.plots.visualize",
    "visualize_reconstruction": "vae.plots.visualize",
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
