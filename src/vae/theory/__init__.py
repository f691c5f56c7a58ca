"""Numerical checks of docs/theory.md: `python -m vae.theory` runs them and rewrites the page's tables and figures.

`check` defines a check and `linear` the models whose exact solution is known. `terms`, `tradeoff` and `learned_prior`
hold one function per statement, `figures` the plots, and `page` lists what each section of the page shows.
"""
