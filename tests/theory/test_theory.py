"""docs/theory.md: independent derivations, checks that notice mistakes, and the numbers of a fresh run."""

import math
import re
import shutil

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from support import ROOT
from vae.errors import VAEError
from vae.evaluation import kl_decomposition, likelihood
from vae.models import distributions, likelihoods, priors
from vae.theory import learned_prior, linear, page, terms, tradeoff
from vae.theory.check import STANDARD_ERRORS, Check, mean_check, normal
from vae.training import objectives

PAGE = ROOT / "docs" / "theory.md"


@pytest.fixture(scope="module")
def sections():
    return {name: compute() for name, compute in page.SECTIONS.items()}


def near(samples, expected):
    """Whether the samples' mean is within the allowed standard errors."""
    return abs(samples.mean() - expected) < STANDARD_ERRORS * samples.std() / math.sqrt(len(samples))


# Checks


def failures(checks):
    return [check.statement for check in checks if not check.passed]


def test_all_checks_of_the_page_pass(sections):
    assert all(section.checks for section in sections.values())
    assert [failure for section in sections.values() for failure in failures(section.checks)] == []


def test_a_check_fails_if_the_numbers_differ():
    assert not Check("rounding", 1.0, 1.0 + 1e-6).passed
    assert not Check("nothing", math.nan, 1.0).passed
    samples = normal(10_000)
    error = samples.std().item() / 100
    assert mean_check("near", samples, samples.mean().item() + 3.9 * error).passed
    assert not mean_check("far", samples, samples.mean().item() + 4.1 * error).passed


def density_with_wrong_sign(z, mu, logvar):
    return -0.5 * ((z - mu).square() / logvar.exp() - logvar + math.log(2 * math.pi)).sum(-1)


BROKEN = {
    "a KL without its factor ½": ("gaussian_kl", lambda mu, v: mu.square() + v.exp() - 1 - v, "kl_by_sampling"),
    "a density with the wrong sign": ("normal_log_density", density_with_wrong_sign, "elbo_is_evidence_minus_gap"),
    "a mean over pixels": ("bernoulli_nll", lambda logits, x: logits.mean(-1), "bernoulli_is_cross_entropy"),
    "a bound without 1/K": ("importance_weighted_bound", lambda w: w.logsumexp(-1), "gap_shrinks_with_samples"),
    "a sample detached from its mean": (
        "VAE.reparameterize",
        lambda self, mu, logvar, noise: mu.detach() + noise * mu / 2,
        "gradients_agree_in_mean",
    ),
    "a loss without β": ("weighted_kl", lambda kl, beta: kl.mean(0).sum(), "mean_over_pixels_is_beta_784"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_the_library_fails_a_check(mistake, monkeypatch):
    name, wrong, check = BROKEN[mistake]
    terms.importance_gap.cache_clear()
    monkeypatch.setattr(f"vae.theory.terms.{name}", wrong)
    assert failures(getattr(terms, check)())
    terms.importance_gap.cache_clear()


# Models with an exact solution


def test_evidence_and_posterior_of_the_linear_model_match_numerical_integration():
    model = linear.LinearGaussian(torch.tensor([[1.2], [-0.4]]).double(), torch.tensor([0.3, 1.0]).double(), 0.6)
    x = torch.tensor([1.5, 0.2]).double()
    z = np.linspace(-8, 8, 4001)
    error = ((x.numpy() - np.array([1.2, -0.4]) * z[:, None] - np.array([0.3, 1.0])) ** 2).sum(1)
    log_joint = -error / 1.2 - math.log(2 * math.pi * 0.6) - z**2 / 2 - math.log(2 * math.pi) / 2
    np.testing.assert_allclose(model.log_joint(x, torch.from_numpy(z)[:, None]), log_joint)
    joint = np.exp(log_joint)
    evidence = np.trapezoid(joint, z)
    mean = np.trapezoid(z * joint, z) / evidence
    exact = model.posterior(x)
    assert model.marginal().log_prob(x).item() == pytest.approx(math.log(evidence))
    assert exact.loc.item() == pytest.approx(mean)
    assert exact.variance.item() == pytest.approx(np.trapezoid((z - mean) ** 2 * joint, z) / evidence)


@pytest.mark.parametrize("beta", tradeoff.BETAS)
def test_training_finds_the_closed_form(beta):
    trained, exact = linear.fit_linear_vae(beta), linear.solve_linear_vae(beta)
    assert trained.kl == pytest.approx(exact.kl, abs=1e-5)
    for name in ("rate", "squared_error", "distortion", "nll"):
        assert getattr(trained, name) == pytest.approx(getattr(exact, name), abs=1e-5), name


def test_free_bits_have_no_effect_above_their_floor():
    fitted = linear.fit_linear_vae(2.0, latents=1, variance=1.0, free_bits=0.5, eigenvalues=(8.0,))
    assert fitted.rate == pytest.approx(0.5 * math.log(8 / 2), abs=1e-3)
    assert fitted.squared_error == pytest.approx(2.0, abs=1e-3)


# The aggregate posterior


def test_mutual_information_marginal_kl_and_holes_match_sampling():
    index = torch.randint(0, 4, (50_000,), generator=torch.Generator().manual_seed(0))
    means, prior = torch.tensor(tradeoff.MEANS).double(), Normal(0.0, 1.0)
    for sigma, _, information, marginal_kl, holes in tradeoff.aggregate_posterior().itertuples(index=False):
        z, from_prior = means[index] + sigma * normal(50_000, seed=1), normal(50_000, seed=2)
        mixture = MixtureSameFamily(Categorical(torch.ones(4).double()), Normal(means, sigma))
        assert near(Normal(means[index], sigma).log_prob(z) - mixture.log_prob(z), information)
        assert near(mixture.log_prob(z) - prior.log_prob(z), marginal_kl)
        assert near((mixture.log_prob(from_prior) < prior.log_prob(from_prior) - math.log(10)).double(), holes)
        assert information < math.log(4)


# The page


def test_the_numbers_and_figures_of_the_committed_page_are_those_of_a_fresh_run(sections, tmp_path):
    copy = tmp_path / "theory.md"
    shutil.copy(PAGE, copy)
    page.write(copy, sections)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    names = {path.name for path in (tmp_path / "theory").iterdir()}
    assert names == {path.name for path in (PAGE.parent / "theory").iterdir()}
    assert names == {f"{name}.png" for name, section in sections.items() if section.figure}


def test_the_page_names_functions_that_exist_and_every_check():
    names = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", PAGE.read_text(encoding="utf-8")))
    homes = (
        terms,
        tradeoff,
        learned_prior,
        priors.Prior,
        objectives,
        distributions,
        likelihoods,
        likelihood,
        kl_decomposition,
    )
    assert [name for name in names if not any(hasattr(home, name) for home in homes)] == []
    checks = {
        name
        for home in (terms, tradeoff, learned_prior)
        for name, value in vars(home).items()
        if str(getattr(value, "__annotations__", {}).get("return")) == "list[vae.theory.check.Check]"
    }
    assert len(checks) == 13
    assert checks <= names, "a check that the page doesn't mention"


def test_the_formulas_of_the_page_survive_githubs_markdown():
    text = re.sub(r"<!-- theory:.*?<!-- /theory:[a-z-]+ -->|```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    for line in text.splitlines():
        assert line.count("$") % 2 == 0, f"a formula across lines: {line}"
        assert not re.search(r"\\[_*{},;!]|\\\\", line), f"Markdown would remove the backslash: {line}"
        assert not re.search(r"[})\]]_", line), f"Markdown would take the underscore for emphasis: {line}"
        for formula in re.findall(r"\$\$?([^$]+)\$", line):
            assert formula.count("{") == formula.count("}"), formula


@pytest.fixture
def one_section(monkeypatch, tmp_path):
    """A page with one section, and a function that runs the command with one check of it."""
    copy = tmp_path / "page.md"
    copy.write_text("before\n<!-- theory:kl -->\nold\n<!-- /theory:kl -->\nafter\n", encoding="utf-8")

    def run(check):
        monkeypatch.setattr(page, "SECTIONS", {"kl": lambda: page.Section([check])})
        page.main(copy)

    return copy, run


def test_the_command_prints_each_check_and_rewrites_the_page(one_section, capsys):
    copy, run = one_section
    run(Check("p(z|x)", 1.0, 1.0))
    assert "ok     kl: p(z|x):  1  1  (below 1e-09)" in capsys.readouterr().out
    text = copy.read_text(encoding="utf-8")
    assert "| p(z\\|x)     |       1 |           1 |  below 1e-09 |" in text  # a bare bar would end the cell
    assert text.startswith("before\n<!-- theory:kl -->\n") and text.endswith("|\n\n<!-- /theory:kl -->\nafter\n")
    assert "old" not in text


def test_a_failed_check_leaves_the_page_unchanged(one_section, capsys):
    copy, run = one_section
    before = copy.read_bytes()
    with pytest.raises(VAEError, match="1 of 1 checks failed"):
        run(Check("1 = 2", 1.0, 2.0))
    assert "FAILED kl: 1 = 2" in capsys.readouterr().out
    assert copy.read_bytes() == before


def test_a_missing_page_and_missing_blocks_are_refused(tmp_path):
    with pytest.raises(VAEError, match="not found"):
        page.main(tmp_path / "none.md")
    (tmp_path / "page.md").write_text("# A page\n")
    with pytest.raises(VAEError, match="has the blocks none"):
        page.write(tmp_path / "page.md", {"kl": page.Section([])})
