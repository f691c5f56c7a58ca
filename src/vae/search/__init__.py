"""The hyperparameter search: an Optuna study whose trials train with `fit()`, in several processes.

`space` translates the search space, `storage` and `study` keep the trials, `trial` trains one, `workers` runs the
processes, `report` and `plots` show the results, `adopt` writes the best values into params.yaml, `dashboard` serves
optuna-dashboard.
"""
