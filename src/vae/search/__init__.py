"""The hyperparameter search: an Optuna study whose trials train with `fit()`, in several processes.

`study` says what is searched and where it is kept, `trial` trains one, `workers` runs the processes, `results` and
`figures` report, `adopt` takes the best values over into params.yaml.
"""
