"""The trained VAE as an MLflow Model (`pyfunc`), which MLflow loads as `model_code` says."""
