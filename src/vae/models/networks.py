"""Encoders and decoders: from images to posteriors, and from latents to images.

A new architecture is an encoder and a decoder here, with a name in `ENCODERS`, `DECODERS` and
`config.ARCHITECTURE_NAMES`.

Shapes: B images of (C, H, W), D = C·H·W values in [0, 1], L latent dimensions, F features: a width [W], or feature maps
[channels, height, width].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from vae.config import Activation, Initialization, ModelParams

FeatureMap = Callable[[Tensor], Tensor]
ImageShape = tuple[int, int, int]  # channels, height, width

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
    `labels` [B] are those that a conditional model was given.
    """

    mu: Tensor
    logvar: Tensor
    features: Sequence[Tensor] = ()
    labels: Tensor | None = None

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

    It is constructed with `(output_shape, params)`: that of images, with P times the channels, for P parameters of each
    pixel value. `output_bias` is the bias of the output, [P·D].
    """

    output_bias: nn.Parameter

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """Latents [B, L] -> the parameters, [B, P·D]: for Bernoulli pixels, the logits.

        The i-th function in `stochastic` takes the features of the i-th layer, [B, *F], and returns those to go on
        with. They are of the same shape as those of the encoder's i-th layer from the end.
        """
        raise NotImplementedError


class MLPEncoder(Encoder):
    """Fully connected layers of the widths `hidden_dims`."""

    def __init__(self, image_shape: ImageShape, params: ModelParams) -> None:
        super().__init__()
        widths = [math.prod(image_shape), *params.hidden_dims]
        self.hidden = dense_stack(widths, params.activation, params.residual)
        self.head = nn.Linear(widths[-1], 2 * params.latent_dim)


class MLPDecoder(Decoder):
    """Fully connected layers of the encoder's widths in reverse.

    With `decoder_skip`, the latents are also an input of every further layer, the last included (Dieng et al. 2019,
    "Avoiding latent variable collapse with generative skip models").
    """

    def __init__(self, output_shape: ImageShape, params: ModelParams) -> None:
        super().__init__()
        widths = [params.latent_dim, *reversed(params.hidden_dims)]
        self.skip = params.decoder_skip
        n_skip = params.latent_dim if self.skip else 0
        self.hidden = dense_stack(widths, params.activation, params.residual, n_skip)
        self.head = nn.Linear(widths[-1] + n_skip, math.prod(output_shape))

    @property
    def output_bias(self) -> nn.Parameter:  # type: ignore[override]
        """The bias of the last layer, [P·D]."""
        return self.head.bias

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """[B, L] -> [B, P·D]; `stochastic` functions take and return [B, W]."""
        h, skip = z, None
        for layer, function in zip_longest(self.hidden, stochastic):
            h = layer(h, skip)
            h = function(h) if function else h
            skip = z if self.skip else None
        out: Tensor = self.head(h if skip is None else torch.cat([h, skip], -1))
        return out


def convolution(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3×3 convolution: [B, n_in, H, W] -> [B, n_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
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
    """Height and width are halved by the first two of `hidden_dims`, MNIST's 28 to 14 and 7; any further ones keep 7.

    Then the fully connected layers of `dense_dims`. Features are [B, channels, height, width].
    """

    def __init__(self, image_shape: ImageShape, params: ModelParams) -> None:
        super().__init__()
        self.image_shape, sizes = image_shape, feature_sizes(image_shape, len(params.hidden_dims))
        layers: list[nn.Module] = []
        channels = [image_shape[0], *params.hidden_dims]
        for index, (n_in, n_out) in enumerate(pairwise(channels)):
            down = convolution(n_in, n_out, stride=scale(index))
            layers.append(nn.Sequential(down, ConvBlock(n_out, params.activation, params.residual)))
        self.hidden = nn.Sequential(*layers)
        widths = [channels[-1] * math.prod(sizes[-1]), *params.dense_dims]
        self.head = nn.Sequential(
            ACTIVATIONS[params.activation](),
            nn.Flatten(),
            *dense_stack(widths, params.activation, params.residual),
            nn.Linear(widths[-1], 2 * params.latent_dim),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, D] -> [B, channels, height, width] for each layer."""
        # Channels-last memory format: faster convolutions on CPUs and GPUs.
        return super().features(x.view(-1, *self.image_shape).contiguous(memory_format=torch.channels_last))

    def posterior(self, features: Tensor) -> Tensor:
        """[B, channels, height, width] -> mean and log-variance side by side, [B, 2L]."""
        mu, logvar = super().posterior(features).chunk(2, -1)
        return torch.cat([mu, logvar + INITIAL_LOGVAR], -1)


class ConvDecoder(Decoder):
    """The encoder mirrored: fully connected layers, then MNIST's 7×7 up to 28×28 by sub-pixel convolutions.

    These give four times the channels, which make up 2×2 pixels each (Shi et al. 2016). Where that is a row or column
    more than the encoder had at this place, the last one is cut off.
    """

    def __init__(self, output_shape: ImageShape, params: ModelParams) -> None:
        super().__init__()
        self.sizes = feature_sizes(output_shape, len(params.hidden_dims))[::-1]
        channels = [*reversed(params.hidden_dims), output_shape[0]]
        self.shape = (*self.sizes[0], channels[0])
        widths = [params.latent_dim, *reversed(params.dense_dims)]
        self.stem = nn.Sequential(
            *dense_stack(widths, params.activation, params.residual), nn.Linear(widths[-1], math.prod(self.shape))
        )
        layers: list[nn.Module] = []
        for index, (n_in, n_out) in enumerate(pairwise(channels)):
            layers.append(ConvBlock(n_in, params.activation, params.residual))
            factor, is_last = scale(len(channels) - 2 - index), index == len(channels) - 2
            up = convolution(n_in, n_out * factor**2, bias=not is_last)
            shuffle = nn.PixelShuffle(factor) if factor > 1 else nn.Identity()
            layers.append(nn.Sequential(ACTIVATIONS[params.activation](), up, shuffle))
        self.hidden = nn.Sequential(*layers)
        self.output_bias = nn.Parameter(torch.zeros(math.prod(output_shape)))

    def forward(self, z: Tensor, stochastic: Sequence[FeatureMap] = ()) -> Tensor:
        """[B, L] -> [B, P·D]; `stochastic` functions take and return [B, channels, height, width]."""
        h = self.stem(z).view(-1, *self.shape).permute(0, 3, 1, 2)
        layers = zip_longest(self.hidden[::2], self.hidden[1::2], self.sizes[1:], stochastic)
        for block, up, (height, width), function in layers:
            h = block(h)
            h = up(function(h) if function else h)[..., :height, :width]
        out: Tensor = h.flatten(1)
        return out + self.output_bias


def scale(index: int) -> int:
    """By how much the encoder's layer `index` reduces height and width."""
    return 2 if index < 2 else 1


def feature_sizes(image_shape: ImageShape, depth: int) -> list[tuple[int, int]]:
    """Height and width of the image, and of the feature maps after 1, 2, … `depth` layers."""
    sizes = [image_shape[1:]]
    for index in range(depth):
        height, width = sizes[-1]
        sizes.append((-(-height // scale(index)), -(-width // scale(index))))
    return sizes


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
