"""Evaluation of a trained model: likelihood bounds, KL decomposition, linear probe, sample quality."""
