"""Encoders and decoders: from images to posteriors, and from latents to images.

A new architecture is an encoder and a decoder here, with a name in `ENCODERS`, `DECODERS` and
`config.ARCHITECTURE_NAMES`.

Shapes: B images, D = 784 pixels in [0, 1], L latent dimensions, F features: a width [W], or feature maps [C, S, S].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from vae.config import Activation, Initialization, ModelParams
from vae.errors import ConfigError

FeatureMap = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "glu": nn.GLU,  # halves its input: see `Dense`
}

# Of a convolutional encoder's posterior. At first, so many layers map all images to nearly the same mean. If the
# posterior were as wide as the prior, the latents would be noise, which the decoder learns to ignore for good.
INITIAL_LOGVAR = -4.0

# Of the weights; biases are set to 0. "default" leaves PyTorch's own initialization.
INITIALIZATIONS: dict[Initialization, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,  # Glorot & Bengio 2010
    "kaiming": nn.init.kaiming_uniform_,  # He et al. 2015, with the gain of ReLU
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. 2014; a convolution's kernels as one matrix
}


class Dense(nn.Module):
    """activation(W h + b), plus h where `residual` is set and the widths allow it; `n_skip` further inputs join h.

    A gated linear unit, (V h + c) · σ(W h + b), has two matrices (Dauphin et al. 2017; the layers of Tomczak & Welling
    2018).
    """

    def __init__(self, n_in: int, n_out: int, activation: Activation, residual: bool, n_skip: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in + n_skip, 2 * n_out if activation == "glu" else n_out)
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


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mu, exp(logvar)), [B, L] each; unpacks as `mu, logvar = model.encode(x)`.

    `features` [B, *F] are those of the encoder's layers, from which further stochastic layers compute their posteriors.
    """

    mu: Tensor
    logvar: Tensor
    features: Sequence[Tensor] = ()

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.mu, self.logvar))

    def __getitem__(self, index: int) -> Tensor:
        return (self.mu, self.logvar)[index]


class Encoder(nn.Module):
    """From pixels to features by the layers `hidden`, and from the last to the posterior's parameters by `head`."""

    hidden: nn.Sequential
    head: nn.Module

    def features(self, x: Tensor) -> list[Tensor]:
        """Pixels [B, D] -> the features of each layer, [B, *F]."""
        features = []
        for layer in self.hidden:
            x = layer(x)
            features.append(x)
        return features

    def posterior(self, features: Tensor) -> Tensor:
        """The last layer's features [B, *F] -> mean and log-variance side by side, [B, 2L]."""
        out: Tensor = self.head(features)
        return out


class Decoder(nn.Module):
    """From latents to the likelihood's parameters; further stochastic layers add to the features in between.

    `output_bias` is the bias of the output, [D].
    """

    output_bias: nn.Parameter

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """Latents [B, L] -> one number per pixel, [B, D]: for Bernoulli pixels, the logits.

        The i-th function in `stochastic` takes the features of the i-th layer, [B, *F], and returns those to go on
        with. They are of the same shape as those of the encoder's i-th layer from the end.
        """
        raise NotImplementedError


class MLPEncoder(Encoder):
    """Fully connected layers of the widths `hidden_dims`."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        widths = [input_dim, *params.hidden_dims]
        self.hidden = dense_stack(widths, params.activation, params.residual)
        self.head = nn.Linear(widths[-1], 2 * params.latent_dim)


class MLPDecoder(Decoder):
    """Fully connected layers of the encoder's widths in reverse.

    With `decoder_skip`, the latents are also an input of every further layer, the last included (Dieng et al. 2019,
    "Avoiding latent variable collapse with generative skip models").
    """

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        widths = [params.latent_dim, *reversed(params.hidden_dims)]
        self.skip = params.decoder_skip
        n_skip = params.latent_dim if self.skip else 0
        self.hidden = dense_stack(widths, params.activation, params.residual, n_skip)
        self.head = nn.Linear(widths[-1] + n_skip, input_dim)

    @property
    def output_bias(self) -> nn.Parameter:  # type: ignore[override]
        """The bias of the last layer, [D]."""
        return self.head.bias

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """[B, L] -> [B, D]; `stochastic` functions take and return [B, W]."""
        h, skip = z, None
        for layer, function in zip_longest(self.hidden, stochastic):
            h = layer(h, skip)
            h = function(h) if function else h
            skip = z if self.skip else None
        out: Tensor = self.head(h if skip is None else torch.cat([h, skip], -1))
        return out


def convolution(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3×3 convolution: [B, n_in, H, W] -> [B, n_out, H / stride, W / stride]."""
    return nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=bias)


class ConvBlock(nn.Module):
    """activation, 3×3 convolution, twice; plus the input where `residual` is set."""

    def __init__(self, channels: int, activation: Activation, residual: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ACTIVATIONS[activation](),
            convolution(channels, channels),
            ACTIVATIONS[activation](),
            convolution(channels, channels),
        )
        self.residual = residual

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        out: Tensor = self.body(h)
        return h + out if self.residual else out


class ConvEncoder(Encoder):
    """28×28 halved to 14×14 and 7×7 by the first two of `hidden_dims`; any further ones stay at 7×7.

    Then the fully connected layers of `dense_dims`. Features are [B, C, S, S] with a side S of 14 or 7.
    """

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        self.side, sides = feature_sides(input_dim, len(params.hidden_dims))
        layers: list[nn.Module] = []
        channels = [1, *params.hidden_dims]
        for (n_in, n_out), (side_in, side_out) in zip(pairwise(channels), pairwise(sides), strict=True):
            down = convolution(n_in, n_out, stride=side_in // side_out)
            layers.append(nn.Sequential(down, ConvBlock(n_out, params.activation, params.residual)))
        self.hidden = nn.Sequential(*layers)
        widths = [channels[-1] * sides[-1] ** 2, *params.dense_dims]
        self.head = nn.Sequential(
            ACTIVATIONS[params.activation](),
            nn.Flatten(),
            *dense_stack(widths, params.activation, params.residual),
            nn.Linear(widths[-1], 2 * params.latent_dim),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, D] -> [B, C, S, S] for each layer."""
        # Channels-last memory format: faster convolutions on CPUs and GPUs.
        images = x.view(-1, 1, self.side, self.side).contiguous(memory_format=torch.channels_last)
        return super().features(images)

    def posterior(self, features: Tensor) -> Tensor:
        """[B, C, 7, 7] -> mean and log-variance side by side, [B, 2L]."""
        mu, logvar = super().posterior(features).chunk(2, -1)
        return torch.cat([mu, logvar + INITIAL_LOGVAR], -1)


class ConvDecoder(Decoder):
    """The encoder mirrored: fully connected layers, then 7×7 up to 28×28 by sub-pixel convolutions.

    These give four times the channels, which make up 2×2 pixels each (Shi et al. 2016).
    """

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        _, sides = feature_sides(input_dim, len(params.hidden_dims))
        channels = [*reversed(params.hidden_dims), 1]
        sides.reverse()
        self.shape = (sides[0], sides[0], channels[0])
        widths = [params.latent_dim, *reversed(params.dense_dims)]
        self.stem = nn.Sequential(
            *dense_stack(widths, params.activation, params.residual), nn.Linear(widths[-1], math.prod(self.shape))
        )
        layers: list[nn.Module] = []
        for (n_in, n_out), (side_in, side_out) in zip(pairwise(channels), pairwise(sides), strict=True):
            scale = side_out // side_in
            layers.append(ConvBlock(n_in, params.activation, params.residual))
            up = convolution(n_in, n_out * scale**2, bias=n_out > 1)
            shuffle = nn.PixelShuffle(scale) if scale > 1 else nn.Identity()
            layers.append(nn.Sequential(ACTIVATIONS[params.activation](), up, shuffle))
        self.hidden = nn.Sequential(*layers)
        self.output_bias = nn.Parameter(torch.zeros(input_dim))

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """[B, L] -> [B, D]; `stochastic` functions take and return [B, C, S, S], with a side S of 7 or 14."""
        h = self.stem(z).view(-1, *self.shape).permute(0, 3, 1, 2)
        for block, up, function in zip_longest(self.hidden[::2], self.hidden[1::2], stochastic):
            h = block(h)
            h = up(function(h) if function else h)
        out: Tensor = h.flatten(1)
        return out + self.output_bias


def feature_sides(input_dim: int, depth: int) -> tuple[int, list[int]]:
    """The image's side, and the sides of the feature maps after 0, 1, … `depth` layers."""
    side = round(input_dim**0.5)
    if side * side != input_dim or side % 4:
        raise ConfigError(f"architecture 'conv' takes square images with a side divisible by 4, not {input_dim} pixels")
    return side, [side, side // 2, *[side // 4] * (depth - 1)][: depth + 1]


ENCODERS: dict[str, type[Encoder]] = {"mlp": MLPEncoder, "conv": ConvEncoder}
DECODERS: dict[str, type[Decoder]] = {"mlp": MLPDecoder, "conv": ConvDecoder}


@torch.no_grad()
def initialize(network: nn.Module, scheme: Initialization) -> None:
    """Initialize the weights of every linear and convolutional layer by `scheme`, and set their biases to 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            INITIALIZATIONS[scheme](layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()
