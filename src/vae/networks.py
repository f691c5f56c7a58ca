"""Encoders and decoders: what maps images to posteriors, and latents to images.

A new architecture is an encoder and a decoder here, with a name in `ENCODERS`, `DECODERS` and `config.Architecture`.

Shapes: B images, D = 784 pixels in [0, 1], L latent dimensions. An encoder returns mean and log-variance side by side;
a decoder returns logits, the pixels' Bernoulli probabilities before the sigmoid.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae.config import Activation, Architecture, Initialization, ModelParams
from vae.errors import ConfigError

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "glu": nn.GLU,  # halves its input: see `Dense`
}

# Of the weights; the biases are then 0. "default" is what PyTorch draws itself.
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
