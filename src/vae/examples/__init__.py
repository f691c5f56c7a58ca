"""Five small studies of what a VAE's parameters do: `python -m vae.examples`."""
