"""Further stochastic layers, in the decoder: latents y, each layer with a prior p(y|·) and a posterior q(y|x, ·).

Both are given all latents above. As in the ladder VAE (Sønderby et al. 2016), posteriors are computed on the way down:
they share the decoder's path with the priors, and add the features of the encoder's layer of the same size. With
convolutions there are latents at each position of the feature maps.

Shapes: B images, K samples of each, M latents of a layer, counted over all positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl_between, normal_log_density
from vae.models.networks import ACTIVATIONS, ConvBlock, Dense, ImageShape, convolution, feature_sizes


class LayerSamples(NamedTuple):
    """Samples y of a layer's q(y|x, ·), and the means and log-variances of q(y|x, ·) and p(y|·): [B·K, M] each."""

    y: Tensor
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor

    def kl(self) -> Tensor:
        """KL(q(y|x, ·) ‖ p(y|·)) given the latents above, [B·K]."""
        return gaussian_kl_between(self.mu, self.logvar, self.prior_mu, self.prior_logvar).sum(-1)

    def log_ratio(self) -> Tensor:
        """log q(y|x, ·) − log p(y|·), [B·K]."""
        log_posterior = normal_log_density(self.y, self.mu, self.logvar)
        return log_posterior - normal_log_density(self.y, self.prior_mu, self.prior_logvar)


@dataclass
class TopDown:
    """What a pass through the decoder gives to the further stochastic layers, and collects from them.

    `noise` is standard normal, [..., M] for each layer. With the encoder's `features` [B, *F], top layer first, each y
    is sampled from q(y|x, ·), and the layer appends to `samples`; without them it is sampled from p(y|·).
    """

    noise: Sequence[Tensor]
    features: Sequence[Tensor] | None = None
    samples: list[LayerSamples] = field(default_factory=list)


class StochasticLayer(nn.Module):
    """From the features of the decoder's layer `index`, [B, W] or with `conv` [B, C, H, W], to those with y added."""

    def __init__(self, index: int, image_shape: ImageShape, params: ModelParams) -> None:
        super().__init__()
        self.index = index
        width, latents = params.hidden_dims[-1 - index], params.lower_latent_dims[index]
        conv = params.architecture == "conv"
        activation = ACTIVATIONS["relu" if params.activation == "glu" else params.activation]

        def connection(n_in: int, n_out: int) -> nn.Module:
            return convolution(n_in, n_out) if conv else nn.Linear(n_in, n_out)

        block = (
            ConvBlock(width, params.activation, params.residual)
            if conv
            else Dense(width, width, params.activation, params.residual)
        )
        self.prior = nn.Sequential(activation(), connection(width, 2 * latents))
        self.posterior = nn.Sequential(
            activation(), connection(2 * width, width), block, activation(), connection(width, 2 * latents)
        )
        self.inject = connection(latents, width)
        size = feature_sizes(image_shape, len(params.hidden_dims))[-1 - index] if conv else (1, 1)
        self.noise_dim = latents * math.prod(size)

    def forward(self, h: Tensor, top_down: TopDown | None = None) -> Tensor:
        """The decoder's features [B·K, *F] -> the same with y added; without `top_down`, y is the mean of p(y|·)."""
        prior_mu, prior_logvar = self.prior(h).float().chunk(2, 1)
        if top_down is None:
            return self._add(h, prior_mu)
        mu, logvar = prior_mu, prior_logvar
        if top_down.features is not None:
            features = top_down.features[self.index]
            features = features.repeat_interleave(len(h) // len(features), 0)
            # The posterior is relative to the prior, and starts near it (Vahdat & Kautz 2020, eq. 3).
            shift, log_scale = self.posterior(torch.cat([features, h], 1)).float().chunk(2, 1)
            mu, logvar = prior_mu + shift, prior_logvar + log_scale
        y = mu + torch.exp(0.5 * logvar) * top_down.noise[self.index].reshape(mu.shape)
        if top_down.features is not None:
            parts = (y, mu, logvar, prior_mu, prior_logvar)
            top_down.samples.append(LayerSamples(*(part.flatten(1) for part in parts)))
        return self._add(h, y)

    def _add(self, h: Tensor, y: Tensor) -> Tensor:
        out: Tensor = h + self.inject(y)
        return out
