from .config import Params, load_params
from .evaluation.likelihood import evaluate
from .models.vae import VAE
from .plots.visualize import (
    generate_samples,
    latent_means,
    visualize_interpolation,
    visualize_latent_arithmetic,
    visualize_latent_manifold,
    visualize_latent_space,
    visualize_reconstruction,
)
from .serving.explorer.build import save_explorer
from .training.loop import fit
from .training.trainer import VAETrainer

__all__ = [
    "VAE",
    "Params",
    "VAETrainer",
    "evaluate",
    "fit",
    "generate_samples",
    "latent_means",
    "load_params",
    "save_explorer",
    "visualize_interpolation",
    "visualize_latent_arithmetic",
    "visualize_latent_manifold",
    "visualize_latent_space",
    "visualize_reconstruction",
]
