"""The latent explorer: a page that computes with the model itself, offline."""
