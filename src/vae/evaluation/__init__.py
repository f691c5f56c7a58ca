"""Evaluation of a trained model: likelihood bounds, the KL decomposition, sample quality."""
