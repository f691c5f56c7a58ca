"""docs/theory.md in numbers: `python -m vae.theory` checks its statements, and rewrites its tables and pictures.

`check` says what a check is and `linear` holds the models that are known exactly; `terms` and `tradeoff` are a function
a statement; `figures` draws, `page` writes.
"""
