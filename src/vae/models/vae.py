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
from torch.nn import functional as F

from vae.config import ModelParams, checked, resolved_likelihood, takes_fields_of
from vae.data.binarization import to_float
from vae.errors import ConfigError, DataError, WeightsError
from vae.files import write_atomically
from vae.models.distributions import normal_log_density
from vae.models.hierarchy import LayerSamples, StochasticLayer, TopDown
from vae.models.likelihoods import LIKELIHOODS
from vae.models.networks import DECODERS, ENCODERS, ImageShape, Posterior, initialize
from vae.models.priors import PRIORS, PriorByClass

DEFAULTS = ModelParams()
# Of the decoder's one-hot input: it learns what the label tells before the latents tell it, too. After 20 epochs with
# 4,000 digits, a classifier finds 94 % of samples in the class that was asked for, and 90 % with a scale of 3.
LABEL_SCALE = 10.0

Labels = Tensor | npt.NDArray[Any] | Sequence[int] | int | None

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

    With `conditional`, it is a conditional VAE of labels from 0 to `classes` − 1 (Sohn et al. 2015): q(z|x, y) and
    p(x|z, y), with a prior p(z) that doesn't depend on y. The latents then hold what the label does not tell. With
    `conditional_prior`, p(z|y) depends on y, too (`PriorByClass`). The latents that all methods take and return are
    then u, whose prior is the same for all classes.

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
        classes: int = 0,
        **params: Any,
    ) -> None:
        super().__init__()
        self.params = checked(ModelParams, {"hidden_dims": hidden_dims, "latent_dim": latent_dim, **params})
        if self.params.likelihood == "auto":  # `Params.resolved_model` knows what the images are like
            self.params = resolved_likelihood(self.params, "dynamic")
        self.image_shape = _image_shape(input_dim, image_shape)
        self.input_dim = math.prod(self.image_shape)
        if self.params.conditional and classes < 1:
            raise ConfigError("conditional requires labelled images, and `classes`, the number of their classes, is 0")
        self.classes = classes if self.params.conditional else 0
        self.encoder = ENCODERS[self.params.architecture](self.image_shape, self.params)
        if self.classes:  # an image for each class, added to the encoder's input: it suits any architecture
            self.label_images = nn.Parameter(torch.zeros(classes, self.input_dim))
        likelihood = LIKELIHOODS[self.params.likelihood](self.params)
        channels, *size = self.image_shape
        output_shape = (channels * likelihood.parameters_per_pixel, *size)
        input_dim = self.params.latent_dim + self.classes  # latents and a one-hot label
        decoder_params = self.params.model_copy(update={"latent_dim": input_dim})
        self.decoder = DECODERS[self.params.architecture](output_shape, decoder_params)
        layers = range(len(self.params.lower_latent_dims))
        self.hierarchy = nn.ModuleList(StochasticLayer(index, self.image_shape, self.params) for index in layers)
        if self.params.initialization != "default":
            initialize(self, self.params.initialization)  # not the prior, which begins as N(0, I) or from the data
        self.prior = PRIORS[self.params.prior](self.input_dim, self.params, self.encode)
        self.prior_by_class = (
            PriorByClass(self.classes, self.params.latent_dim) if self.params.conditional_prior else None
        )
        self.likelihood = likelihood

    @classmethod
    def from_params(
        cls,
        params: ModelParams,
        seed: int,
        input_dim: int | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        classes: int = 0,
    ) -> Self:
        """A new model with weights initialized from `seed`; the global random state is left unchanged."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(input_dim, image_shape=image_shape, classes=classes, **params.model_dump())

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make such a model, untrained: `VAE(**config)`."""
        return {"image_shape": self.image_shape, "classes": self.classes, **self.params.model_dump(mode="json")}

    @property
    def noise_dim(self) -> int:
        """Standard normal numbers that a sample of all latents takes: L, and those of further stochastic layers."""
        return self.params.latent_dim + sum(self._layer_dims)

    @property
    def _layer_dims(self) -> list[int]:
        return [cast(StochasticLayer, layer).noise_dim for layer in self.hierarchy]

    def extra_repr(self) -> str:
        """The line that `repr` shows above the parts."""
        widths = "-".join(map(str, (self.input_dim, *self.params.hidden_dims)))
        parameters = sum(parameter.numel() for parameter in self.parameters())
        network = f"{self.params.architecture} {widths}, latent_dim={self.params.latent_dim}"
        label = f", conditional on {self.classes} classes" if self.classes else ""
        label += ", a prior for each" if self.prior_by_class else ""
        return f"{network}, prior={self.params.prior}{label}, {parameters:,} parameters"

    def encode(self, x: Tensor | npt.NDArray[Any], labels: Labels = None) -> Posterior:
        """Pixels [B, D] or [B, C, H, W] -> q(z|x); unpacks as mean and log-variance, [B, L] each.

        Pixels are floats in [0, 1] or uint8, in a tensor or a NumPy array. A conditional model takes the `labels` of
        the images, integers [B] or one for all; others ignore them. Raises DataError where an image does not have D
        pixels, or labels are missing, are out of range, or don't fit the images.
        """
        x = to_float(torch.as_tensor(x, device=self.output_bias.device))
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.input_dim:
            raise DataError(
                f"images have shape {tuple(x.shape)}, allowed is (B, ...) with {self.input_dim} pixels each"
            )
        x, given = x.flatten(1).to(self.output_bias.dtype), None
        if self.classes:
            given = self._checked(labels, x.shape[:1])
            x = x + self.label_images[given]
        features = self.encoder.features(x)
        mu, logvar = self.encoder.posterior(features[-1]).float().chunk(2, dim=-1)
        if self.prior_by_class and given is not None:
            mu, logvar = self.prior_by_class.posterior_of_u(mu, logvar, given)
        return Posterior(mu, logvar, features, given)

    def reparameterize(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = mu + sigma · noise with standard normal noise, sampled here unless given: [..., L]."""
        noise = torch.randn_like(mu) if noise is None else noise
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: Tensor, labels: Labels = None, *, top_down: TopDown | None = None) -> Tensor:
        """Latents [..., L] -> the likelihood's parameters, [..., P·D]: for Bernoulli pixels, their logits.

        A conditional model takes `labels` [B] of latents [B, ..., L], or one for all. Further stochastic layers sample
        as `top_down` says; without it, their latents are the means of their priors. Raises DataError where z does not
        have L dimensions, and for labels as `encode` does.
        """
        if not z.ndim or z.shape[-1] != self.params.latent_dim:
            raise DataError(f"latents have shape {tuple(z.shape)}, allowed is (..., {self.params.latent_dim})")
        stochastic = [partial(layer, top_down=top_down) for layer in self.hierarchy]
        h = z
        if self.classes:
            given = self._checked(labels, z.shape[:-1])
            one_hot = F.one_hot(given, self.classes)
            h = self.prior_by_class(z, given) if self.prior_by_class else z
            h = torch.cat([h, LABEL_SCALE * one_hot.to(z.dtype)], -1)
        output: Tensor = self.decoder(h.reshape(-1, h.shape[-1]), stochastic)
        return output.float().view(*z.shape[:-1], output.shape[-1])

    def _checked(self, labels: Labels, shape: torch.Size) -> Tensor:
        """The labels of a batch of this shape, int64; given are those of its first dimensions, or one for all."""
        if labels is None:
            raise DataError(f"the model is conditional: it takes a label from 0 to {self.classes - 1} for each image")
        labels = torch.as_tensor(labels, device=self.output_bias.device)
        fit = not labels.is_floating_point() and labels.shape == shape[: labels.ndim]
        # A compiled step can't look at values: `validate`, which is not compiled, then sees them first.
        if not fit or (not torch.compiler.is_compiling() and not 0 <= labels.min() <= labels.max() < self.classes):
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, allowed are integers from 0 to "
                f"{self.classes - 1}, one for each image"
            )
        return labels.long().view(labels.shape + (1,) * (len(shape) - labels.ndim)).expand(shape)

    def kl(self, mu: Tensor, logvar: Tensor, log_prior: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p(z)) as terms that add up to it, [..., L] -> [..., terms] (see `Prior.kl`)."""
        return self.prior.kl(mu, logvar, log_prior)

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        *,
        labels: Labels = None,
        posterior: Posterior | None = None,
        detach_posterior: bool = False,
    ) -> Terms:
        """Pixels [B, D] -> the terms of the bound at K posterior samples, in nats per image.

        `noise` [B, K, N] is standard normal; without it, one sample is taken. `labels` are as in `encode`. `posterior`
        is `encode(x, labels)`, where that is known already. With `detach_posterior`, log q(z|x) in `log_ratio` is that
        of detached parameters, so that the encoder's gradient comes through the samples alone (Tucker et al. 2019).
        """
        posterior = self.encode(x, *self._given(labels)) if posterior is None else posterior
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
        given = self._given(posterior.labels)
        if not self.hierarchy:
            return PosteriorSamples(z, self.decode(z, *given), [])
        top_down = TopDown(layer_noise, posterior.features[::-1])
        return PosteriorSamples(z, self.decode(z, *given, top_down=top_down), top_down.samples)

    def _given(self, labels: Labels) -> tuple[Labels, ...]:
        """The labels as an argument of a conditional model; others have methods without it, if a subclass wishes."""
        return (labels,) if self.classes else ()

    @property
    def output_bias(self) -> Tensor:
        """The bias of the decoder's output, [P·D]."""
        return cast(Tensor, self.decoder.output_bias)

    def images(self, z: Tensor, labels: Labels = None) -> Tensor:
        """Latents [..., L] -> mean images [..., D]: for Bernoulli pixels, the probabilities of white.

        `labels` are as in `decode`.
        """
        return self.likelihood.mean(self.decode(z, *self._given(labels)))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, *, labels: Labels = None) -> Tensor:
        """`n` mean images decoded from samples of the prior, [n, D].

        A conditional model makes them of the classes `labels`, integers [n] or one for all, or of each class in turn.
        Raises DataError for labels where the model isn't conditional.
        """
        if labels is not None and not self.classes:
            raise DataError("the model isn't conditional: it can't sample images of a class")
        device = self.output_bias.device
        if self.classes and labels is None:
            labels = torch.arange(n, device=device) % self.classes
        z = self.prior.sample(n, generator, device)
        if not self.hierarchy:
            return self.images(z, labels)
        noise = [torch.randn(n, dim, generator=generator, device=device) for dim in self._layer_dims]
        return self.likelihood.mean(self.decode(z, *self._given(labels), top_down=TopDown(noise)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor | npt.NDArray[Any], labels: Labels = None) -> Tensor:
        """Pixels [B, D] -> mean images [B, D], decoded from the posterior's mean. `x`, `labels` are as in `encode`."""
        posterior = self.encode(x, *self._given(labels))
        noise = torch.zeros(len(x), 1, self.noise_dim, device=posterior.mu.device)
        return self.likelihood.mean(self.sample_posterior(posterior, noise).output.squeeze(1))

    @torch.no_grad()
    def interpolate(
        self, start: Tensor, end: Tensor, steps: int, spherical: bool = False, *, labels: Labels = None
    ) -> Tensor:
        """Mean images between two latents [L], both ends included: [steps, D].

        Along the line, or with `spherical` along the great circle (`slerp`), which keeps the typical distance of a
        high-dimensional normal's samples from the origin. A conditional model takes `labels`, [steps] or one for all.
        Raises DataError where a latent does not have L dimensions.
        """
        if not start.shape == end.shape == (self.params.latent_dim,):
            shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
            raise DataError(f"the latents have shapes {shapes}, allowed is ({self.params.latent_dim},) for both")
        weight = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.images(slerp(start, end, weight) if spherical else torch.lerp(start, end, weight), labels)

    @torch.no_grad()
    def initialize_from_data(self, images: Tensor) -> None:
        """Data-dependent initialization from `images` [N, D], uint8 or floats in [0, 1].

        The output bias starts where pixel values have about the mean and the standard deviation of the data (Burda et
        al. 2016); the prior may follow.
        """
        self.output_bias.copy_(self.constant_output(images))
        self.prior.initialize_from_data(images)

    def constant_output(self, images: Tensor) -> Tensor:
        """The output of a decoder that ignores the latents: pixels with about the mean and standard deviation of data.

        `images` [N, D] are uint8, or floats in [0, 1].
        """
        x = to_float(images[:: -(-images.numel() // MOMENTS_FROM)])
        return self.likelihood.from_moments(x.mean(0), x.std(0, correction=0))

    def save(self, path: Path | str) -> None:
        """Write weights and configuration as safetensors: no pickle, and the same bytes for the same weights."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(path, save(tensors, metadata={"vae": json.dumps(self.config)}))

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
