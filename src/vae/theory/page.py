"""docs/theory.md: its sections' checks, tables and pictures, written between the page's markers."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vae.errors import VAEError
from vae.files import write_atomically
from vae.theory import figures, terms, tradeoff
from vae.theory.check import ROUNDING, Check
from vae.theory.linear import EIGENVALUES, NOISE

DPI = 110
BLOCK = re.compile(r"(<!-- theory:([a-z-]+) -->\n).*?(<!-- /theory:\2 -->)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """What a section of the page shows of its own: checks, a table of numbers, a picture named like the section."""

    checks: list[Check]
    table: pd.DataFrame | None = None
    figure: Figure | None = None


def elbo() -> Section:
    """ELBO, evidence and the gap between them."""
    checks = [*terms.elbo_is_evidence_minus_gap(), *terms.exact_posterior_leaves_no_gap()]
    return Section(checks, figure=figures.elbo(*terms.elbo_by_posterior()))


def reparameterization() -> Section:
    """Gradients through the sample against those of the score function."""
    table = terms.gradient_variance_by_latents()
    shown = pd.DataFrame({"latents": table["latents"].unique()})
    for name, rows in table.groupby("estimator", sort=False):
        shown[f"{name}, measured"], shown[f"{name}, exact"] = rows["measured"].to_numpy(), rows["exact"].to_numpy()
    return Section(terms.gradients_agree_in_mean(), shown, figures.gradient_variance(table))


def kl() -> Section:
    """The closed form of the KL."""
    return Section(terms.kl_by_sampling())


def bernoulli() -> Section:
    """The Bernoulli likelihood, and what grey targets make of it."""
    return Section([*terms.bernoulli_is_cross_entropy(), *terms.grey_is_no_likelihood()])


def beta() -> Section:
    """What β is, and where it hides."""
    return Section([*terms.mean_over_pixels_is_beta_784(), *tradeoff.beta_is_the_noise()])


def importance() -> Section:
    """The importance-weighted bound."""
    table, at_one, limit = terms.importance_gap()
    shown = table.assign(**{"K · gap": table["K"] * table["gap"]}).rename(columns={"standard_error": "s.e. of the gap"})
    return Section(
        terms.gap_shrinks_with_samples(table, at_one, limit), shown, figures.importance(table, at_one, limit)
    )


def rate_distortion() -> Section:
    """The trade that β makes, in a linear VAE."""
    table = tradeoff.rate_distortion()
    checks = tradeoff.rate_distortion_is_shannons()
    return Section(checks, table, figures.rate_distortion(table, tradeoff.rate_distortion_curve()))


def collapse() -> Section:
    """Which latents collapse."""
    trained, curve = tradeoff.kl_by_beta()
    figure = figures.collapse(trained, curve, EIGENVALUES, NOISE)
    return Section(tradeoff.components_collapse_below_the_noise(), figure=figure)


def aggregate() -> Section:
    """The aggregate posterior and its holes."""
    table, checks = tradeoff.mean_kl_splits_in_two()
    found = {sigma: tradeoff.aggregate_posterior(sigma) for sigma in table.iloc[:, 0]}
    return Section(checks, table, figures.aggregate(found))


SECTIONS: dict[str, Callable[[], Section]] = {
    "elbo": elbo,
    "reparameterization": reparameterization,
    "kl": kl,
    "bernoulli": bernoulli,
    "beta": beta,
    "importance": importance,
    "rate-distortion": rate_distortion,
    "collapse": collapse,
    "aggregate": aggregate,
}


def number(value: float) -> str:
    """Four significant digits without exponent; what is only rounding is 0."""
    if abs(value) < ROUNDING:
        return "0"
    return np.format_float_positional(value, 4, fractional=False, trim="-").replace("-", "−")


def markdown(section: Section) -> str:
    """The section's checks and its table, as Markdown."""
    rows = [
        [check.statement, number(check.measured), number(check.expected), check.difference] for check in section.checks
    ]
    parts = [_table(["checked", "one way", "the other", "difference"], rows)]
    if section.table is not None:
        cells = [[number(value) for value in row] for row in section.table.itertuples(index=False)]
        parts.append(_table([str(name) for name in section.table.columns], cells))
    return "\n".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    # A bar inside a cell would end it.
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def rewrite(page: str, sections: dict[str, Section]) -> str:
    """The page with each section's numbers between its markers; VAEError where markers and sections don't match."""
    found = [name for _, name, _ in BLOCK.findall(page)]
    if sorted(found) != sorted(sections):
        raise VAEError(f"the page's blocks are {', '.join(found) or 'none'}; they should be {', '.join(sections)}")
    return BLOCK.sub(lambda block: f"{block[1]}\n{markdown(sections[block[2]])}\n{block[3]}", page)


def write(path: Path, sections: dict[str, Section]) -> None:
    """Write the page's numbers, and its pictures into the folder beside it that is called like it."""
    page = rewrite(path.read_text(encoding="utf-8"), sections)
    for name, section in sections.items():
        if section.figure is not None:
            buffer = io.BytesIO()
            section.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            write_atomically(path.parent / path.stem / f"{name}.png", buffer.getvalue())
    write_atomically(path, page)
