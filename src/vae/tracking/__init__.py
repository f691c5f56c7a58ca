"""MLflow: the store and the runs in it."""
