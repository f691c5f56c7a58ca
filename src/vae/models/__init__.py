"""The VAE and its parts: networks, priors, likelihoods, further stochastic layers."""
