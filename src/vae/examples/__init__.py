"""Five small studies of the parameters of a VAE: `python -m vae.examples`."""
