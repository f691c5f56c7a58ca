"""The hyperparameter search: an Optuna study whose trials train with `fit()`, in several processes.

`space` translates the search space, `storage` and `study` keep the trials, `trial` trains one (`group` in several
processes), `workers` runs the processes, `finals` trains the best ones in full, `report` and `plots` show the results,
`adopt` writes the best values into params.yaml, `dashboard` serves optuna-dashboard.
"""
