"""The generated parts of docs/theory.md: each section's checks, table and figure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vae.errors import VAEError
from vae.files import write_atomically
from vae.plots.figure import save
from vae.theory import figures, learned_prior, terms, tradeoff
from vae.theory.check import ROUNDING, Check

PAGE = Path("docs/theory.md")
DPI = 110
BLOCK = re.compile(r"(<!-- theory:([a-z-]+) -->\n).*?(<!-- /theory:\2 -->)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """What the code adds to a section of the page."""

    checks: list[Check]
    table: pd.DataFrame | None = None
    figure: Figure | None = None


SECTIONS: Mapping[str, Callable[[], Section]] = {
    "elbo": lambda: Section(
        terms.elbo_is_evidence_minus_gap() + terms.exact_posterior_leaves_no_gap(), figure=figures.elbo()
    ),
    "reparameterization": lambda: Section(
        terms.gradients_agree_in_mean(), terms.gradient_variance_by_latents(), figures.gradient_variance()
    ),
    "kl": lambda: Section(terms.kl_by_sampling()),
    "bernoulli": lambda: Section(terms.bernoulli_is_cross_entropy() + terms.grey_is_no_likelihood()),
    "beta": lambda: Section(terms.mean_over_pixels_is_beta_784() + tradeoff.beta_is_the_noise()),
    "importance": lambda: Section(terms.gap_shrinks_with_samples(), terms.importance_gap()[0], figures.importance()),
    "rate-distortion": lambda: Section(
        tradeoff.rate_distortion_is_shannons(), tradeoff.rate_distortion(), figures.rate_distortion()
    ),
    "collapse": lambda: Section(tradeoff.components_collapse_below_the_noise(), figure=figures.collapse()),
    "aggregate": lambda: Section(tradeoff.mean_kl_splits_in_two(), tradeoff.aggregate_posterior(), figures.aggregate()),
    "learned-prior": lambda: Section(
        learned_prior.best_prior_is_the_aggregate_posterior(), learned_prior.learned_priors(), figures.learned_prior()
    ),
}


def number(value: float) -> str:
    """Format with four significant digits and no exponent; rounding errors become 0."""
    if abs(value) < ROUNDING:
        return "0"
    return np.format_float_positional(value, 4, fractional=False, trim="-").replace("-", "−")


def markdown(section: Section) -> str:
    """The section's checks and table in Markdown."""
    tables = [pd.DataFrame(check.row() for check in section.checks)]
    tables += [] if section.table is None else [section.table]
    return "\n\n".join(
        table.map(lambda cell: cell if isinstance(cell, str) else number(cell))
        .rename(columns=_escaped)
        .map(_escaped)
        .to_markdown(index=False, disable_numparse=True, colalign=["left"] + ["right"] * (table.shape[1] - 1))
        for table in tables
    )


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")  # a bare bar would end the cell


def write(path: Path, sections: Mapping[str, Section]) -> None:
    """Rewrite the tables of the page at `path`, and its figures in the folder of the same name beside it.

    Raises VAEError if the page's blocks are not those of `sections`.
    """
    page = path.read_text(encoding="utf-8")
    blocks = [name for _, name, _ in BLOCK.findall(page)]
    if sorted(blocks) != sorted(sections):
        raise VAEError(f"{path} has the blocks {', '.join(blocks) or 'none'}, expected are {', '.join(sections)}")
    for name, section in sections.items():
        if section.figure is not None:
            save(section.figure, path.parent / path.stem / f"{name}.png", DPI)
    write_atomically(path, BLOCK.sub(lambda block: f"{block[1]}\n{markdown(sections[block[2]])}\n\n{block[3]}", page))


def main(path: Path = PAGE) -> None:
    """Print one line per check and rewrite the page at `path`, unless a check fails (VAEError)."""
    if not path.is_file():
        raise VAEError(f"{path} not found: run this command in the repository's root")
    sections = {name: compute() for name, compute in SECTIONS.items()}
    checks = [(name, check) for name, section in sections.items() for check in section.checks]
    for name, check in checks:
        verdict, numbers = "ok    " if check.passed else "FAILED", f"{number(check.value)}  {number(check.reference)}"
        print(f"{verdict} {name}: {check.statement}:  {numbers}  ({check.difference})")
    if failed := sum(not check.passed for _, check in checks):
        raise VAEError(f"{failed} of {len(checks)} checks failed; {path} was not rewritten")
    write(path, sections)
