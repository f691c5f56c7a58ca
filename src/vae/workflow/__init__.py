"""What the pipeline's stages and `train-vae` share."""
