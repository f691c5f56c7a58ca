"""A further stochastic layer, in the decoder: latents y with a prior p(y|z) and a posterior q(y|x, z).

As in the ladder VAE (Sønderby et al. 2016), the posterior is computed on the way down: it shares the decoder's path
with the prior and adds the encoder's features. With convolutions there are latents at each position of the feature
maps.

Shapes: B images, K samples of each, M latents of this layer, counted over all positions.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl_between, normal_log_density
from vae.models.networks import ACTIVATIONS, ConvBlock, Dense, convolution, feature_sides


class LayerSamples(NamedTuple):
    """Samples y of q(y|x, z), and the means and log-variances of q(y|x, z) and p(y|z): [B·K, M] each."""

    y: Tensor
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor

    def kl(self) -> Tensor:
        """KL(q(y|x, z) ‖ p(y|z)) at each z, [B·K]."""
        return gaussian_kl_between(self.mu, self.logvar, self.prior_mu, self.prior_logvar).sum(-1)

    def log_ratio(self) -> Tensor:
        """log q(y|x, z) − log p(y|z), [B·K]."""
        log_posterior = normal_log_density(self.y, self.mu, self.logvar)
        return log_posterior - normal_log_density(self.y, self.prior_mu, self.prior_logvar)


@dataclass
class TopDown:
    """What a pass through the decoder gives to a further stochastic layer, and collects from it.

    `noise` [..., M] is standard normal. With the encoder's `features` [B, *F], y is sampled from q(y|x, z), and the
    layer appends to `samples`; without them it is sampled from p(y|z).
    """

    noise: Tensor
    features: Tensor | None = None
    samples: list[LayerSamples] = field(default_factory=list)


class StochasticLayer(nn.Module):
    """From the decoder's features to features with y added; they are [B, W], or [B, C, 7, 7] with `conv`."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        width, latents = params.hidden_dims[-1], params.lower_latent_dim or 0
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
        positions = feature_sides(input_dim, len(params.hidden_dims))[1][-1] ** 2 if conv else 1
        self.noise_dim = latents * positions

    def forward(self, h: Tensor, top_down: TopDown | None = None) -> Tensor:
        """The decoder's features [B·K, *F] -> the same with y added; without `top_down`, y is the mean of p(y|z)."""
        prior_mu, prior_logvar = self.prior(h).float().chunk(2, 1)
        if top_down is None:
            return self._add(h, prior_mu)
        mu, logvar = prior_mu, prior_logvar
        if top_down.features is not None:
            features = top_down.features.repeat_interleave(len(h) // len(top_down.features), 0)
            # The posterior is relative to the prior, and starts near it (Vahdat & Kautz 2020, eq. 3).
            shift, log_scale = self.posterior(torch.cat([features, h], 1)).float().chunk(2, 1)
            mu, logvar = prior_mu + shift, prior_logvar + log_scale
        y = mu + torch.exp(0.5 * logvar) * top_down.noise.reshape(mu.shape)
        if top_down.features is not None:
            parts = (y, mu, logvar, prior_mu, prior_logvar)
            top_down.samples.append(LayerSamples(*(part.flatten(1) for part in parts)))
        return self._add(h, y)

    def _add(self, h: Tensor, y: Tensor) -> Tensor:
        out: Tensor = h + self.inject(y)
        return out
