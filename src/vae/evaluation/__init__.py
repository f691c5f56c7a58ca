"""Evaluation of a trained model: likelihood bounds, AIS, KL decomposition, linear probe, samples, anomalies."""
