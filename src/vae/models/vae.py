"""The VAE: an encoder, a decoder, a prior and a likelihood, and optionally further stochastic layers.

Shapes: B images of D = C·H·W values in [0, 1], L latent dimensions, K posterior samples of each image, N standard
normal numbers that sampling all latents takes (`noise_dim`), P parameters that the likelihood has for each value.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy.typing as npt
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from vae.config import ModelParams, checked, resolved_likelihood, takes_fields_of
from vae.data.binarization import to_float
from vae.errors import ConfigError, DataError, WeightsError
from vae.files import write_atomically
from vae.models.distributions import normal_log_density
from vae.models.hierarchy import LayerSamples, StochasticLayer, TopDown
from vae.models.likelihoods import LIKELIHOODS
from vae.models.networks import DECODERS, ENCODERS, ImageShape, Posterior, initialize
from vae.models.priors import PRIORS

DEFAULTS = ModelParams()
MOMENTS_FROM = 2**27  # pixel values at most, evenly spaced images: 0.5 GB as floats


class Terms(NamedTuple):
    """The terms of each image's bound, in nats, at K posterior samples."""

    nll: Tensor  # −log p(x|z_k), [B, K]
    kl: Tensor  # terms that add up to KL(q ‖ p), [B, terms]: exact, or means over the samples
    log_ratio: Tensor  # log q(z_k|x) − log p(z_k) of all latents, [B, K]; its mean is the KL
    z: Tensor  # the samples, [B, K, L]

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z_k) − log q(z_k|x), [B, K]: the log importance weights."""
        return -self.nll - self.log_ratio


class PosteriorSamples(NamedTuple):
    """K samples of each image's posterior, and their decoding."""

    z: Tensor  # [B, K, L]
    output: Tensor  # the likelihood's parameters, [B, K, P·D]
    layers: list[LayerSamples]  # of further stochastic layers


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior (Kingma & Welling 2014), put together from named parts.

    `image_shape` is (channels, height, width). It may be left out for square grey images, of which `input_dim`, the
    number of pixels, says enough. Other keyword arguments are the fields of `ModelParams`, with its defaults. Raises
    ConfigError for an unknown or invalid one.

    A subclass may override `encode`, `decode`, `kl` or `forward`: training, evaluation and sampling call these.
    """

    @takes_fields_of(ModelParams)
    def __init__(
        self,
        input_dim: int | None = None,
        hidden_dims: Sequence[int] = DEFAULTS.hidden_dims,
        latent_dim: int = DEFAULTS.latent_dim,
        *,
        image_shape: Sequence[int] | None = None,
        **params: Any,
    ) -> None:
        super().__init__()
        self.params = checked(ModelParams, {"hidden_dims": hidden_dims, "latent_dim": latent_dim, **params})
        if self.params.likelihood == "auto":  # `Params.resolved_model` knows what the images are like
            self.params = resolved_likelihood(self.params, "dynamic")
        self.image_shape = _image_shape(input_dim, image_shape)
        self.input_dim = math.prod(self.image_shape)
        self.encoder = ENCODERS[self.params.architecture](self.image_shape, self.params)
        likelihood = LIKELIHOODS[self.params.likelihood](self.params)
        channels, *size = self.image_shape
        output_shape = (channels * likelihood.parameters_per_pixel, *size)
        self.decoder = DECODERS[self.params.architecture](output_shape, self.params)
        layers = range(len(self.params.lower_latent_dims))
        self.hierarchy = nn.ModuleList(StochasticLayer(index, self.image_shape, self.params) for index in layers)
        if self.params.initialization != "default":
            initialize(self, self.params.initialization)  # not the prior, which begins as N(0, I) or from the data
        self.prior = PRIORS[self.params.prior](self.input_dim, self.params, self.encode)
        self.likelihood = likelihood

    @classmethod
    def from_params(
        cls, params: ModelParams, seed: int, input_dim: int | None = None, *, image_shape: Sequence[int] | None = None
    ) -> Self:
        """A new model with weights initialized from `seed`; the global random state is left unchanged."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(input_dim, image_shape=image_shape, **params.model_dump())

    @property
    def noise_dim(self) -> int:
        """Standard normal numbers that a sample of all latents takes: L, and those of further stochastic layers."""
        return self.params.latent_dim + sum(self._layer_dims)

    @property
    def _layer_dims(self) -> list[int]:
        return [cast(StochasticLayer, layer).noise_dim for layer in self.hierarchy]

    @property
    def kl_per_dimension(self) -> bool:
        """Whether `Terms.kl` is exact, with one term per latent dimension; otherwise it is estimated from samples."""
        return self.params.kl_per_dimension

    def extra_repr(self) -> str:
        """The line that `repr` shows above the parts."""
        widths = "-".join(map(str, (self.input_dim, *self.params.hidden_dims)))
        parameters = sum(parameter.numel() for parameter in self.parameters())
        network = f"{self.params.architecture} {widths}, latent_dim={self.params.latent_dim}"
        return f"{network}, prior={self.params.prior}, {parameters:,} parameters"

    def encode(self, x: Tensor | npt.NDArray[Any]) -> Posterior:
        """Pixels [B, D] or [B, C, H, W] -> q(z|x); unpacks as mean and log-variance, [B, L] each.

        Pixels are floats in [0, 1] or uint8, in a tensor or a NumPy array. Raises DataError where an image does not
        have D pixels.
        """
        x = to_float(torch.as_tensor(x, device=self.output_bias.device))
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.input_dim:
            raise DataError(
                f"images have shape {tuple(x.shape)}, allowed is (B, ...) with {self.input_dim} pixels each"
            )
        features = self.encoder.features(x.flatten(1).to(self.output_bias.dtype))
        mu, logvar = self.encoder.posterior(features[-1]).float().chunk(2, dim=-1)
        return Posterior(mu, logvar, features)

    def reparameterize(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = mu + sigma · noise with standard normal noise, sampled here unless given: [..., L]."""
        noise = torch.randn_like(mu) if noise is None else noise
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: Tensor, top_down: TopDown | None = None) -> Tensor:
        """Latents [..., L] -> the likelihood's parameters, [..., P·D]: for Bernoulli pixels, their logits.

        Further stochastic layers sample as `top_down` says; without it, their latents are the means of their priors.
        Raises DataError where z does not have L dimensions.
        """
        if not z.ndim or z.shape[-1] != self.params.latent_dim:
            raise DataError(f"latents have shape {tuple(z.shape)}, allowed is (..., {self.params.latent_dim})")
        stochastic = [partial(layer, top_down=top_down) for layer in self.hierarchy]
        output: Tensor = self.decoder(z.reshape(-1, z.shape[-1]), stochastic)
        return output.float().view(*z.shape[:-1], output.shape[-1])

    def kl(self, mu: Tensor, logvar: Tensor, log_prior: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p(z)) as terms that add up to it, [..., L] -> [..., terms] (see `Prior.kl`)."""
        return self.prior.kl(mu, logvar, log_prior)

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        *,
        posterior: Posterior | None = None,
        detach_posterior: bool = False,
    ) -> Terms:
        """Pixels [B, D] -> the terms of the bound at K posterior samples, in nats per image.

        `noise` [B, K, N] is standard normal; without it, one sample is taken. `posterior` is `encode(x)`, where that is
        known already. With `detach_posterior`, log q(z|x) in `log_ratio` is that of detached parameters, so that the
        encoder's gradient comes through the samples alone (Tucker et al. 2019).
        """
        posterior = self.encode(x) if posterior is None else posterior
        if noise is None:
            noise = torch.randn(len(x), 1, self.noise_dim, device=x.device)
        z, output, layers = self.sample_posterior(posterior, noise)
        mu, logvar = (part.unsqueeze(1) for part in posterior)
        log_prior = self.prior.log_density(z)
        kl = self.kl(mu, logvar, log_prior).mean(1)
        if detach_posterior:
            mu, logvar = mu.detach(), logvar.detach()
        log_ratio = normal_log_density(z, mu, logvar) - log_prior
        for layer in layers:
            kl = torch.cat([kl, layer.kl().view_as(log_ratio).mean(1, keepdim=True)], -1)
            log_ratio = log_ratio + layer.log_ratio().view_as(log_ratio)
        return Terms(self.likelihood.nll(output, x.flatten(1).unsqueeze(1)), kl, log_ratio, z)

    def sample_posterior(self, posterior: Posterior, noise: Tensor) -> PosteriorSamples:
        """Samples of all latents from standard normal `noise` [B, K, N], and their decoding."""
        mu, logvar = (part.unsqueeze(1) for part in posterior)
        z_noise, *layer_noise = noise.split([mu.shape[-1], *self._layer_dims], -1)
        z = self.reparameterize(mu, logvar, z_noise)
        if not self.hierarchy:
            return PosteriorSamples(z, self.decode(z), [])
        top_down = TopDown(layer_noise, posterior.features[::-1])
        return PosteriorSamples(z, self.decode(z, top_down), top_down.samples)

    @property
    def output_bias(self) -> Tensor:
        """The bias of the decoder's output, [P·D]."""
        return cast(Tensor, self.decoder.output_bias)

    def images(self, z: Tensor) -> Tensor:
        """Latents [..., L] -> mean images [..., D]: for Bernoulli pixels, the probabilities of white."""
        return self.likelihood.mean(self.decode(z))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` mean images decoded from samples of the prior, [n, D]."""
        device = self.output_bias.device
        z = self.prior.sample(n, generator, device)
        if not self.hierarchy:
            return self.images(z)
        noise = [torch.randn(n, dim, generator=generator, device=device) for dim in self._layer_dims]
        return self.likelihood.mean(self.decode(z, TopDown(noise)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor | npt.NDArray[Any]) -> Tensor:
        """Pixels [B, D] -> mean images [B, D], decoded from the posterior's mean. `x` is as in `encode`."""
        posterior = self.encode(x)
        noise = torch.zeros(len(x), 1, self.noise_dim, device=posterior.mu.device)
        return self.likelihood.mean(self.sample_posterior(posterior, noise).output.squeeze(1))

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int, spherical: bool = False) -> Tensor:
        """Mean images between two latents [L], both ends included: [steps, D].

        Along the line, or with `spherical` along the great circle (`slerp`), which keeps the typical distance of a
        high-dimensional normal's samples from the origin. Raises DataError where a latent does not have L dimensions.
        """
        if not start.shape == end.shape == (self.params.latent_dim,):
            shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
            raise DataError(f"the latents have shapes {shapes}, allowed is ({self.params.latent_dim},) for both")
        weight = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.images(slerp(start, end, weight) if spherical else torch.lerp(start, end, weight))

    @torch.no_grad()
    def initialize_from_data(self, images: Tensor) -> None:
        """Data-dependent initialization from `images` [N, D], uint8 or floats in [0, 1].

        The output bias starts where pixel values have about the mean and the standard deviation of the data (Burda et
        al. 2016); the prior may follow.
        """
        x = to_float(images[:: -(-images.numel() // MOMENTS_FROM)])
        self.output_bias.copy_(self.likelihood.from_moments(x.mean(0), x.std(0, correction=0)))
        self.prior.initialize_from_data(images)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration as safetensors: no pickle, and the same bytes for the same weights."""
        config = {"image_shape": self.image_shape, **self.params.model_dump(mode="json")}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(path, save(tensors, metadata={"vae": json.dumps(config)}))

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Self:
        """The model that `save` wrote, in evaluation mode.

        Raises WeightsError where the file is missing, is not such a file, or its weights don't fit its configuration.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            config = json.loads(metadata["vae"])
            with torch.random.fork_rng(devices=[]):
                model = cls(**config)
            model.load_state_dict(weights)
        except FileNotFoundError:
            raise WeightsError(f"{path} not found: `dvc repro` trains it") from None
        except (OSError, safetensors.SafetensorError, KeyError, RecursionError, json.JSONDecodeError) as error:
            raise WeightsError(f"{path} is not a VAE weights file of this project: {error}") from None
        except (ConfigError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{path} doesn't match its own configuration: {' '.join(str(error).split())}") from None
        return model.to(device).eval()


def _image_shape(input_dim: int | None, image_shape: Sequence[int] | None) -> ImageShape:
    if image_shape is None:
        side = math.isqrt(784 if input_dim is None else input_dim)
        image_shape = (1, side, side) if input_dim in (None, side * side) else (1, 1, input_dim)
    if len(image_shape) != 3 or min(image_shape) < 1 or input_dim not in (None, math.prod(image_shape)):
        raise ConfigError(
            f"image_shape is {tuple(image_shape)}, allowed is (channels, height, width)"
            + (f" with {input_dim} values in all, as input_dim says" if input_dim else "")
        )
    channels, height, width = image_shape
    return channels, height, width


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation between latents [L] at weights [N, 1] from 0 to 1: [N, L] (Shoemake 1985).

    The direction changes at constant angular speed, the length linearly. Parallel latents are interpolated linearly.
    """
    lengths = start.norm(), end.norm()
    directions = start / lengths[0].clamp(min=1e-12), end / lengths[1].clamp(min=1e-12)
    angle = torch.arccos((directions[0] @ directions[1]).clamp(-1, 1))
    if angle.sin() < 1e-4 or not min(lengths):  # there is no great circle through both, or more than one
        return torch.lerp(start, end, weight)
    direction = torch.sin((1 - weight) * angle) * directions[0] + torch.sin(weight * angle) * directions[1]
    points: Tensor = direction / angle.sin() * torch.lerp(lengths[0], lengths[1], weight)
    return points
