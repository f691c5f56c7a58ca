"""The trained VAE for others to use: as an MLflow Model (`pyfunc`, loaded as `model_code` says), and as a page.

`lookup` finds a model's files and `artifacts` checks them; `images` reads what is to be scored.
"""
