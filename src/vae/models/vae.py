"""The VAE: an encoder, a decoder and a prior. No loss lives here.

Shapes: B images, D = 784 pixels in [0, 1], L latent dimensions, N the normal draws that a sample takes (`noise_dim`).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from vae.config import Architecture, ModelParams, checked
from vae.data.binarization import to_float
from vae.errors import ConfigError, DataError, WeightsError
from vae.files import write_atomically
from vae.models.hierarchy import LowerDraws, LowerLayer
from vae.models.networks import DECODERS, ENCODERS, initialize
from vae.models.priors import VampPrior, make_prior


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation between latents [L] at weights [N, 1] from 0 to 1: [N, L] (Shoemake 1985).

    The direction turns evenly, the length changes evenly. Along one direction it is the line.
    """
    lengths = start.norm(), end.norm()
    directions = start / lengths[0].clamp(min=1e-12), end / lengths[1].clamp(min=1e-12)
    angle = torch.arccos((directions[0] @ directions[1]).clamp(-1, 1))
    if angle.sin() < 1e-4 or not min(lengths):  # no great circle, or many
        return torch.lerp(start, end, weight)
    turned = torch.sin((1 - weight) * angle) * directions[0] + torch.sin(weight * angle) * directions[1]
    points: Tensor = turned / angle.sin() * torch.lerp(lengths[0], lengths[1], weight)
    return points


class Encoding(NamedTuple):
    """What the encoder says of images: mean and log-variance of q(z|x), [B, L] each, and its features."""

    mu: Tensor
    logvar: Tensor
    features: Tensor


class Draws(NamedTuple):
    """K posterior samples of each image's latents, and their decoding."""

    logits: Tensor  # [B, K, D]
    z: Tensor  # [B, K, L]
    mu: Tensor  # [B, 1, L], as the log-variance
    logvar: Tensor
    lower: LowerDraws | None  # of a second layer


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior, Bernoulli pixels and one of the priors of `vae.prior`.

    Kingma & Welling 2014. Keyword arguments beyond `input_dim` are those of `ModelParams`; ConfigError tells
    of a wrong one.
    """

    def __init__(
        self,
        input_dim: int = 784,
        hidden_dims: Sequence[int] = (512, 512),
        latent_dim: int = 32,
        architecture: Architecture = "mlp",
        **other: Any,
    ) -> None:
        super().__init__()
        named = {"architecture": architecture, "hidden_dims": tuple(hidden_dims), "latent_dim": latent_dim}
        self.params = checked(ModelParams, named | other)
        self.input_dim = input_dim
        self.encoder = ENCODERS[architecture](input_dim, self.params)
        self.decoder = DECODERS[architecture](input_dim, self.params)
        self.lower = LowerLayer(input_dim, self.params) if self.params.lower_latent_dim else None
        self.prior = make_prior(self.encode, input_dim, self.params)
        if self.params.initialization != "default":
            initialize(self, self.params.initialization)

    @classmethod
    def from_params(cls, params: ModelParams, seed: int, input_dim: int = 784) -> Self:
        """A fresh model with weights drawn from `seed`; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(input_dim=input_dim, **params.model_dump())

    @property
    def noise_dim(self) -> int:
        """How many standard normal draws a sample of all latents takes: L, and those of a second layer."""
        return self.params.latent_dim + (self.lower.noise_dim if self.lower else 0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, D] or [B, 1, 28, 28], in [0, 1] -> the posterior q(z|x)'s mean and log-variance, [B, L] each.

        Raises DataError where an image hasn't D pixels.
        """
        encoding = self.encoding(x)
        return encoding.mu, encoding.logvar

    def encoding(self, x: Tensor) -> Encoding:
        """The same with the encoder's features, from which a second layer's posterior is found."""
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.input_dim:
            raise DataError(
                f"images have shape {tuple(x.shape)}, allowed is (B, ...) with {self.input_dim} pixels each"
            )
        features = self.encoder.features(x.flatten(1))
        mu, logvar = self.encoder.posterior(features).float().chunk(2, dim=-1)
        return Encoding(mu, logvar, features)

    def reparameterize(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = mu + sigma · noise with standard normal noise, drawn here unless given: [..., L]."""
        noise = torch.randn_like(mu) if noise is None else noise
        return mu + torch.exp(0.5 * logvar) * noise

    def draw(self, encoding: Encoding, noise: Tensor) -> Draws:
        """K posterior samples of all latents, from standard normal `noise` [B, K, N], and their decoding."""
        mu, logvar = encoding.mu.unsqueeze(1), encoding.logvar.unsqueeze(1)
        z_noise, lower_noise = noise.split([mu.shape[-1], noise.shape[-1] - mu.shape[-1]], -1)
        z = self.reparameterize(mu, logvar, z_noise)
        logits, lower = self._decode(z, lower_noise, encoding.features)
        return Draws(logits, z, mu, logvar, lower)

    def kl(self, draws: Draws) -> Tensor:
        """KL(q ‖ p) of all latents as terms that add up to it, [B, terms]; each is exact, or a mean over the draws."""
        kl = self.prior.kl(draws.mu, draws.logvar, draws.z).mean(1)
        return kl if draws.lower is None else torch.cat([kl, draws.lower.kl().mean(1, keepdim=True)], -1)

    def log_ratio(self, draws: Draws) -> Tensor:
        """log q(z|x) − log p(z) of all latents at each draw, [B, K]: its mean is the KL."""
        ratio = self.prior.log_ratio(draws.mu, draws.logvar, draws.z)
        return ratio if draws.lower is None else ratio + draws.lower.log_ratio()

    def decode(self, z: Tensor) -> Tensor:
        """Latents [..., L] -> Bernoulli logits [..., D]; their sigmoid is the image.

        A second layer's latents are at the mean of their prior. Raises DataError where z hasn't L dimensions.
        """
        noise = z.new_zeros(*z.shape[:-1], self.noise_dim - self.params.latent_dim)
        return self._decode(z, noise, None)[0]

    def _decode(self, z: Tensor, noise: Tensor, seen: Tensor | None) -> tuple[Tensor, LowerDraws | None]:
        """Logits [..., D]; a second layer's latents follow their posterior where the encoder's features are given."""
        if not z.ndim or z.shape[-1] != self.params.latent_dim:
            raise DataError(f"latents have shape {tuple(z.shape)}, allowed is (..., {self.params.latent_dim})")
        flat, lower = z.reshape(-1, z.shape[-1]), None
        h = self.decoder.start(flat)
        if self.lower:
            if seen is not None:
                seen = seen.repeat_interleave(len(h) // len(seen), 0)
            h, lower = self.lower(h, noise.reshape(-1, noise.shape[-1]), seen)
        logits: Tensor = self.decoder.finish(h, flat).float().view(*z.shape[:-1], self.input_dim)
        return logits, None if lower is None else LowerDraws(*(part.view(*z.shape[:-1], -1) for part in lower))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [B, D] -> logits [B, D] of one posterior sample, and the posterior's mean and log-variance.

        `noise` [B, N] is drawn here unless it is given.
        """
        encoding = self.encoding(x)
        noise = torch.randn(len(x), self.noise_dim, device=x.device) if noise is None else noise
        return self.draw(encoding, noise.unsqueeze(1)).logits.squeeze(1), encoding.mu, encoding.logvar

    @property
    def output_bias(self) -> Tensor:
        """The bias of the logits, [D]."""
        return cast(Tensor, self.decoder.output_bias)

    def images(self, z: Tensor) -> Tensor:
        """Latents [..., L] -> pixel probabilities [..., D], the decoded images."""
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` images decoded from draws of the prior: pixel probabilities [n, D]."""
        device = self.output_bias.device
        z = self.prior.sample(n, generator, device)
        noise = torch.randn(n, self.noise_dim - self.params.latent_dim, generator=generator, device=device)
        return self._decode(z, noise, None)[0].sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixels [B, D] -> pixel probabilities [B, D], decoded from the posterior's mean."""
        noise = torch.zeros(len(x), self.noise_dim, device=x.device)
        logits: Tensor = self(x, noise)[0]
        return logits.sigmoid()

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int, spherical: bool = False) -> Tensor:
        """Images between two latents [L], both ends included: [steps, D].

        Along the line; or, `spherical`, along the great circle (`slerp`), which keeps the typical distance from the
        origin of a high-dimensional normal's draws.
        """
        weight = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.images(slerp(start, end, weight) if spherical else torch.lerp(start, end, weight))

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Start from what `images` [B, D], uint8 or floats, tell of the data.

        Output bias = logit of their mean (Burda et al. 2016); a VampPrior's pseudo-images are some of them.
        """
        self.output_bias.copy_(torch.logit(to_float(images).mean(0), eps=1e-3))
        for part in self.prior.modules():
            if isinstance(part, VampPrior):
                part.start_from(images)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration as safetensors: the same bytes for the same weights, and no pickle."""
        config = {"input_dim": self.input_dim, **self.params.model_dump(mode="json")}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(path, save(tensors, metadata={"vae": json.dumps(config)}))

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Self:
        """The model that `save` wrote, in evaluation mode.

        Raises WeightsError where the file is missing, isn't such a file, or its weights don't fit its configuration.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            config = json.loads(metadata["vae"])
            with torch.device("meta"):  # the weights come from the file: don't draw them first
                model = cls(**config)
            model.load_state_dict(weights, assign=True)
        except FileNotFoundError:
            raise WeightsError(f"{path} not found: `dvc repro` trains it") from None
        except (OSError, safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise WeightsError(f"{path} is not a VAE weights file of this project: {error}") from None
        except (ConfigError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{path} doesn't match its own configuration: {' '.join(str(error).split())}") from None
        return model.to(device).eval()
