"""Encoders, decoders and the VAE that joins them. No loss lives here.

Shapes: B images, D = 784 pixels in [0, 1], L latent dimensions. A decoder returns logits: the pixels'
Bernoulli probabilities before the sigmoid.
"""

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, cast

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from vae.config import Activation, Architecture, Initialization, ModelParams, describe
from vae.errors import ConfigError, DataError, WeightsError
from vae.files import write_atomically

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

# Of the weights; the biases are then 0. "default" is what PyTorch draws itself.
INITIALIZATIONS: dict[Initialization, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,  # Glorot & Bengio 2010
    "kaiming": nn.init.kaiming_uniform_,  # He et al. 2015, with the gain of ReLU
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. 2014; a convolution's kernels as one matrix
}


class Dense(nn.Module):
    """activation(W h + b), plus h where `residual` is set and the widths allow it; `n_skip` further inputs join h."""

    def __init__(self, n_in: int, n_out: int, activation: Activation, residual: bool, n_skip: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in + n_skip, n_out)
        self.activation = ACTIVATIONS[activation]()
        self.residual = residual and n_in == n_out

    def forward(self, h: Tensor, skip: Tensor | None = None) -> Tensor:
        """[B, n_in], and [B, n_skip] where there is one -> [B, n_out]."""
        out: Tensor = self.activation(self.linear(h if skip is None else torch.cat([h, skip], -1)))
        return h + out if self.residual else out


def dense_stack(widths: Sequence[int], activation: Activation, residual: bool, n_skip: int = 0) -> nn.Sequential:
    """One `Dense` layer between each two neighbours of `widths`; all but the first take `n_skip` further inputs."""
    layers = [Dense(a, b, activation, residual, n_skip if i else 0) for i, (a, b) in enumerate(pairwise(widths))]
    return nn.Sequential(*layers)


class MLPEncoder(nn.Module):
    """[B, D] -> mean and log-variance, [B, 2L]."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        widths = [input_dim, *params.hidden_dims]
        self.hidden = dense_stack(widths, params.activation, params.residual)
        self.head = nn.Linear(widths[-1], 2 * params.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, 2L]."""
        out: Tensor = self.head(self.hidden(x))
        return out


class MLPDecoder(nn.Module):
    """[B, L] -> logits [B, D], through the encoder's widths in reverse.

    With `decoder_skip`, the latents also join the input of each further layer, the last included: no layer can lose
    them (Dieng et al. 2019, "Avoiding latent variable collapse with generative skip models").
    """

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        widths = [params.latent_dim, *reversed(params.hidden_dims)]
        self.skip = params.decoder_skip
        n_skip = params.latent_dim if self.skip else 0
        self.hidden = dense_stack(widths, params.activation, params.residual, n_skip)
        self.head = nn.Linear(widths[-1] + n_skip, input_dim)

    @property
    def output_bias(self) -> nn.Parameter:
        """The bias of the logits, [D]."""
        return self.head.bias

    def forward(self, z: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        if not self.skip:
            out: Tensor = self.head(self.hidden(z))
            return out
        first, *others = self.hidden
        h = first(z)
        for layer in others:
            h = layer(h, z)
        out = self.head(torch.cat([h, z], -1))
        return out


class ConvBlock(nn.Module):
    """activation, 3×3 convolution, twice; plus the input where `residual` is set."""

    def __init__(self, channels: int, activation: Activation, residual: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.residual = residual

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        out: Tensor = self.body(h)
        return h + out if self.residual else out


class ConvEncoder(nn.Module):
    """28×28 halved to 14×14 and 7×7 by the first two of `hidden_dims`; any further ones stay at 7×7."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        self.side, sides = _sides(input_dim, len(params.hidden_dims))
        layers: list[nn.Module] = []
        channels = [1, *params.hidden_dims]
        for (n_in, n_out), (side_in, side_out) in zip(pairwise(channels), pairwise(sides), strict=True):
            layers.append(nn.Conv2d(n_in, n_out, 3, stride=side_in // side_out, padding=1))
            layers.append(ConvBlock(n_out, params.activation, params.residual))
        layers.append(ACTIVATIONS[params.activation]())
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * sides[-1] ** 2, 2 * params.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, 2L]."""
        out: Tensor = self.head(self.hidden(x.view(-1, 1, self.side, self.side)).flatten(1))
        return out


class ConvDecoder(nn.Module):
    """The encoder mirrored: 7×7 up to 28×28 by nearest-neighbour upsampling and 3×3 convolutions."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        _, sides = _sides(input_dim, len(params.hidden_dims))
        channels = [*reversed(params.hidden_dims), 1]
        sides.reverse()
        self.shape = (channels[0], sides[0], sides[0])
        self.stem = nn.Linear(params.latent_dim, channels[0] * sides[0] ** 2)
        layers: list[nn.Module] = []
        for (n_in, n_out), (side_in, side_out) in zip(pairwise(channels), pairwise(sides), strict=True):
            layers.append(ConvBlock(n_in, params.activation, params.residual))
            if side_out > side_in:
                layers.append(nn.Upsample(scale_factor=side_out // side_in))
            layers.append(ACTIVATIONS[params.activation]())
            layers.append(nn.Conv2d(n_in, n_out, 3, padding=1, bias=n_out > 1))
        self.hidden = nn.Sequential(*layers)
        self.output_bias = nn.Parameter(torch.zeros(input_dim))

    def forward(self, z: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        out: Tensor = self.hidden(self.stem(z).view(-1, *self.shape)).flatten(1)
        return out + self.output_bias


def _sides(input_dim: int, depth: int) -> tuple[int, list[int]]:
    """The image's side, and the sides of the feature maps after 0, 1, … `depth` layers."""
    side = round(input_dim**0.5)
    if side * side != input_dim or side % 4:
        raise ConfigError(f"architecture 'conv' takes square images with a side divisible by 4, not {input_dim} pixels")
    return side, [side, side // 2, *[side // 4] * (depth - 1)][: depth + 1]


ENCODERS: dict[Architecture, type[nn.Module]] = {"mlp": MLPEncoder, "conv": ConvEncoder}
DECODERS: dict[Architecture, type[nn.Module]] = {"mlp": MLPDecoder, "conv": ConvDecoder}


@torch.no_grad()
def initialize(network: nn.Module, scheme: Initialization) -> None:
    """Draw the weights of every linear and convolutional layer anew, and set their biases to 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            INITIALIZATIONS[scheme](layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()


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


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior, a standard normal prior and Bernoulli pixels.

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
        try:
            self.params = ModelParams(
                architecture=architecture, hidden_dims=tuple(hidden_dims), latent_dim=latent_dim, **other
            )
        except ValidationError as error:
            raise ConfigError(describe(error, ModelParams)) from None
        self.input_dim = input_dim
        self.encoder = ENCODERS[architecture](input_dim, self.params)
        self.decoder = DECODERS[architecture](input_dim, self.params)
        if self.params.initialization != "default":
            initialize(self, self.params.initialization)

    @classmethod
    def from_params(cls, params: ModelParams, seed: int, input_dim: int = 784) -> Self:
        """A fresh model with weights drawn from `seed`; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(input_dim=input_dim, **params.model_dump())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, D] or [B, 1, 28, 28], in [0, 1] -> the posterior q(z|x)'s mean and log-variance, [B, L] each.

        Raises DataError where an image hasn't D pixels.
        """
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.input_dim:
            raise DataError(
                f"images have shape {tuple(x.shape)}, allowed is (B, ...) with {self.input_dim} pixels each"
            )
        mu, logvar = self.encoder(x.flatten(1)).float().chunk(2, dim=-1)
        return mu, logvar

    def reparameterize(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """z = mu + sigma · noise with standard normal noise, drawn here unless given: [B, L]."""
        noise = torch.randn_like(mu) if noise is None else noise
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: Tensor) -> Tensor:
        """Latents [..., L] -> Bernoulli logits [..., D]; their sigmoid is the image.

        Raises DataError where they haven't L dimensions.
        """
        if not z.ndim or z.shape[-1] != self.params.latent_dim:
            raise DataError(f"latents have shape {tuple(z.shape)}, allowed is (..., {self.params.latent_dim})")
        logits: Tensor = self.decoder(z.reshape(-1, z.shape[-1])).float()
        return logits.view(*z.shape[:-1], self.input_dim)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [B, D] -> logits [B, D] of one posterior sample, and the posterior's mean and log-variance."""
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar, noise)), mu, logvar

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
        noise = torch.randn(n, self.params.latent_dim, generator=generator, device=self.output_bias.device)
        return self.images(noise)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixels [B, D] -> pixel probabilities [B, D], decoded from the posterior's mean."""
        return self.images(self.encode(x)[0])

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int, spherical: bool = False) -> Tensor:
        """Images between two latents [L], both ends included: [steps, D].

        Along the line; or, `spherical`, along the great circle (`slerp`), which keeps the typical distance from the
        origin of a high-dimensional normal's draws.
        """
        weight = torch.linspace(0, 1, steps, device=start.device)[:, None]
        return self.images(slerp(start, end, weight) if spherical else torch.lerp(start, end, weight))

    @torch.no_grad()
    def set_output_bias(self, mean: Tensor) -> None:
        """Start from the mean image: output bias = logit of the pixel means [D] in [0, 1] (Burda et al. 2016)."""
        self.output_bias.copy_(torch.logit(mean, eps=1e-3))

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
