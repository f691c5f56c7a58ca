"""Training: the loop, its objectives and optimizers, and `VAETrainer`."""
