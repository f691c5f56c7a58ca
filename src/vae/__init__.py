"""A variational autoencoder on MNIST: the library behind the pipeline.

Names are imported when they are first used: torch costs seconds, and reading params.yaml doesn't need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.config import Params, load_params
    from vae.evaluation import evaluate
    from vae.model import VAE
    from vae.training import fit

_HOME = {
    "Params": "vae.config",
    "load_params": "vae.config",
    "evaluate": "vae.evaluation",
    "VAE": "vae.model",
    "fit": "vae.training",
}

__all__ = ["VAE", "Params", "evaluate", "fit", "load_params"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vae' has no attribute {name!r}")
