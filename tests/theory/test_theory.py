"""docs/theory.md: its claims derived once more, its checks against broken code, its numbers against a fresh run."""

import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from vae.errors import VAEError
from vae.theory import __main__ as command
from vae.theory import linear, page, terms, tradeoff
from vae.theory.check import ERRORS_ALLOWED, Check, by_sampling, draws

PAGE = Path(__file__).parent.parent / "docs" / "theory.md"


@pytest.fixture(scope="module")
def sections():
    return {name: compute() for name, compute in page.SECTIONS.items()}


def near(samples, expected):
    """The samples' mean is within the standard errors that a check allows."""
    return abs(samples.mean() - expected) < ERRORS_ALLOWED * samples.std() / math.sqrt(len(samples))


# --- checks


@pytest.mark.parametrize("name", page.SECTIONS)
def test_every_statement_of_the_page_holds(sections, name):
    assert sections[name].checks
    assert [check for check in sections[name].checks if not check.holds] == []


def test_a_check_fails_where_the_numbers_differ():
    assert not Check("rounding", 1.0, 1.0 + 1e-6).holds
    assert not Check("nothing", math.nan, 1.0).holds
    samples = draws(10_000)
    error = samples.std().item() / 100
    assert by_sampling("near", samples, samples.mean().item() + 3.9 * error).holds
    assert not by_sampling("far", samples, samples.mean().item() + 4.1 * error).holds


def failures(checks):
    return [check.statement for check in checks if not check.holds]


def test_a_kl_without_its_half_is_noticed(monkeypatch):
    monkeypatch.setattr(terms, "gaussian_kl", lambda mu, logvar: mu.square() + logvar.exp() - 1 - logvar)
    assert len(failures(terms.kl_by_sampling())) == 3  # all but the prior's own, 0


def test_a_density_with_the_wrong_sign_of_its_log_variance_is_noticed(monkeypatch):
    def wrong(z, mu, logvar):
        return -0.5 * ((z - mu).square() / logvar.exp() - logvar + math.log(2 * math.pi)).sum(-1)

    monkeypatch.setattr(terms, "normal_log_density", wrong)
    assert failures(terms.elbo_is_evidence_minus_gap())
    assert failures(terms.kl_by_sampling())


def test_a_mean_over_pixels_is_noticed(monkeypatch):
    whole = terms.bernoulli_nll
    monkeypatch.setattr(terms, "bernoulli_nll", lambda logits, x: whole(logits, x) / logits.shape[-1])
    assert failures(terms.bernoulli_is_cross_entropy())


def test_a_bound_that_forgets_to_divide_by_k_is_noticed(monkeypatch):
    monkeypatch.setattr(terms, "importance_weighted_bound", lambda weights: torch.logsumexp(weights, -1))
    assert failures(terms.gap_shrinks_with_samples(*terms.importance_gap()))


def test_a_sample_without_its_mean_is_noticed(monkeypatch):
    monkeypatch.setattr(terms.VAE, "reparameterize", lambda self, mu, logvar, noise: mu.detach() + noise * mu / 2)
    assert failures(terms.gradients_agree_in_mean())


def test_a_loss_that_ignores_beta_is_noticed(monkeypatch):
    monkeypatch.setattr(terms, "weighted_kl", lambda kl, beta: kl.mean(0).sum())
    assert failures(terms.mean_over_pixels_is_beta_784())
    monkeypatch.setattr(linear, "weighted_kl", lambda kl, beta, free_bits: kl.mean(0).sum())
    assert linear.fit_linear_vae(linear.linear_data(), 4.0).kl[0] != pytest.approx(0.5 * math.log(4 / 0.8), abs=0.1)


# --- the models that are known exactly


def test_evidence_and_posterior_of_the_linear_model_are_those_of_integration():
    model = linear.LinearGaussian(torch.tensor([[1.2], [-0.4]]).double(), torch.tensor([0.3, 1.0]).double(), 0.6)
    x = torch.tensor([1.5, 0.2]).double()
    z = np.linspace(-8, 8, 4001)
    mean = np.array([1.2, -0.4]) * z[:, None] + np.array([0.3, 1.0])
    log_joint = (
        -((x.numpy() - mean) ** 2).sum(1) / 1.2 - math.log(2 * math.pi * 0.6) - z**2 / 2 - math.log(2 * math.pi) / 2
    )
    np.testing.assert_allclose(model.log_joint(x, torch.from_numpy(z)[:, None]), log_joint)
    joint = np.exp(log_joint)
    evidence = np.trapezoid(joint, z)
    assert model.marginal().log_prob(x).item() == pytest.approx(math.log(evidence))
    posterior_mean = np.trapezoid(z * joint, z) / evidence
    exact = model.posterior(x)
    assert exact.loc.item() == pytest.approx(posterior_mean)
    assert exact.variance.item() == pytest.approx(np.trapezoid((z - posterior_mean) ** 2 * joint, z) / evidence)


def test_the_elbo_in_closed_form_is_the_mean_of_its_samples():
    model, x = terms.small_model()
    mu, logvar = draws(1, 2, seed=1), draws(1, 2, seed=2)
    q = Normal(mu, torch.exp(0.5 * logvar))
    z = mu + torch.exp(0.5 * logvar) * draws(50_000, 2, seed=3)
    samples = Normal(z @ model.weight.T + model.bias, math.sqrt(model.variance)).log_prob(x).sum(-1)
    samples = samples + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
    assert near(samples, model.elbo(x, mu, logvar).item())


def test_the_gap_in_the_picture_of_the_elbo_is_that_of_two_normal_distributions():
    table, evidence = terms.elbo_by_posterior()
    width, offset = table["width"], table["offset"]
    np.testing.assert_allclose(evidence - table["elbo"], 0.5 * (width**2 + offset**2 - 1) - np.log(width), atol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0, 30.0])
def test_the_linear_vaes_optimum_is_what_a_blind_search_finds(beta):
    found = linear.solve_linear_vae(beta)
    for value, kl in zip(linear.EIGENVALUES, found.kl, strict=False):  # one component, one latent

        def loss(parameters, value=value):
            w, v, log_s = parameters
            error = (1 - w * v) ** 2 * value + w**2 * math.exp(2 * log_s)
            return error / (2 * linear.NOISE) + beta * rate(v, log_s, value)

        best = min((minimize(loss, start, tol=1e-12) for start in ([1, 0.5, -0.5], [0.1, 0.1, 0])), key=lambda r: r.fun)
        assert rate(*best.x[1:], value) == pytest.approx(kl, abs=2e-4)
        assert best.fun == pytest.approx(min(value, beta * 0.2) / 0.4 + beta * kl, abs=1e-7)


def rate(v, log_s, value):
    return 0.5 * (v**2 * value + math.exp(2 * log_s) - 1 - 2 * log_s)


def test_the_data_have_the_eigenvalues_that_the_closed_form_is_of():
    x = linear.linear_data()
    assert x.mean(0).abs().max() < 1e-12
    covariance = (x.T @ x / len(x)).numpy()
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[::-1], linear.EIGENVALUES)
    assert abs(covariance - np.diag(np.diag(covariance))).max() > 0.1


@pytest.mark.parametrize("beta", tradeoff.BETAS)
def test_training_finds_the_closed_form(sections, beta):
    trained, exact = tradeoff.fitted(beta), linear.solve_linear_vae(beta)
    assert trained.kl == pytest.approx(exact.kl, abs=1e-5)
    for name in ("rate", "squared_error", "distortion", "nll"):
        assert getattr(trained, name) == pytest.approx(getattr(exact, name), abs=1e-5), name


def test_free_bits_cost_nothing_above_their_floor():
    fitted = linear.fit_linear_vae(linear.linear_data([8.0]), 2.0, latents=1, variance=1.0, free_bits=0.5)
    assert fitted.rate == pytest.approx(0.5 * math.log(8 / 2), abs=1e-3)
    assert fitted.squared_error == pytest.approx(2.0, abs=1e-3)


# --- gradients


@pytest.mark.parametrize(("mu", "sigma"), [(0.5, 1.0), (-1.0, 0.3)])
def test_the_gradients_variances_are_those_of_quadrature(mu, sigma):
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    first, second = np.meshgrid(nodes, nodes)
    joint = np.outer(weights, weights)
    f = (mu + sigma * first) ** 2 + (mu + sigma * second) ** 2
    estimators = {
        "reparameterized": 2 * (mu + sigma * first),
        "score": f * first / sigma,
        "score − baseline": (f - (f * joint).sum()) * first / sigma,
    }
    for name, variance in terms.gradient_variances(2, mu, sigma).items():
        gradient = estimators[name]
        mean = (gradient * joint).sum()
        assert mean == pytest.approx(2 * mu)
        assert variance == pytest.approx(((gradient - mean) ** 2 * joint).sum()), name


def test_each_estimator_is_unbiased_elsewhere_too():
    for name, gradients in terms.gradient_samples(3, 50_000, mu=-1.0, sigma=0.5).items():
        assert near(gradients, -2.0), name
        assert near((gradients + 2).square(), terms.gradient_variances(3, -1.0, 0.5)[name]), name


# --- importance weighting and the aggregate posterior


def test_the_limit_of_the_gap_is_the_chi_square_divergence_by_sampling():
    model, x = terms.small_model()
    exact = model.posterior(x[0])
    q = MultivariateNormal(exact.loc, torch.diag(1.5 * exact.covariance_matrix.diagonal()))
    z = exact.loc + draws(400_000, 2, seed=30) @ q.scale_tril.T
    ratio = (exact.log_prob(z) - q.log_prob(z)).exp()
    _, at_one, limit = terms.importance_gap((1,))
    assert near(ratio, 1.0)
    assert near(0.5 * (ratio.square() - 1), limit)
    assert near(-ratio.log(), at_one)


def test_the_gap_falls_from_one_number_of_samples_to_the_next(sections):
    gaps = sections["importance"].table["gap"].to_numpy()
    assert (np.diff(gaps) < 0).all()
    assert (gaps > 0).all()


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_mutual_information_and_marginal_kl_are_those_of_sampling(sigma):
    index = torch.randint(0, 4, (50_000,), generator=torch.Generator().manual_seed(0))
    means = torch.tensor(tradeoff.MEANS).double()
    z = means[index] + sigma * draws(50_000, seed=1)
    mixture = MixtureSameFamily(Categorical(torch.ones(4).double()), Normal(means, sigma))
    found = tradeoff.aggregate_posterior(sigma)
    assert near(Normal(means[index], sigma).log_prob(z) - mixture.log_prob(z), found.mutual_information)
    assert near(mixture.log_prob(z) - Normal(0.0, 1.0).log_prob(z), found.marginal_kl)
    assert found.mutual_information < math.log(4)
    prior = draws(50_000, seed=2)
    in_hole = mixture.log_prob(prior) < Normal(0.0, 1.0).log_prob(prior) - math.log(10)
    assert near(in_hole.double(), found.hole)


# --- the page


def test_the_committed_pages_numbers_are_those_of_a_fresh_run(sections, tmp_path):
    copy = tmp_path / "theory.md"
    shutil.copy(PAGE, copy)
    page.write(copy, sections)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    drawn = {path.name for path in (tmp_path / "theory").iterdir()}
    assert drawn == {path.name for path in (PAGE.parent / "theory").iterdir()}
    assert drawn == {f"{name}.png" for name, section in sections.items() if section.figure}


def test_writing_twice_changes_nothing(sections, tmp_path):
    copy, picture = tmp_path / "page.md", tmp_path / "page" / "elbo.png"
    copy.write_text("<!-- theory:elbo -->\n<!-- /theory:elbo -->\n", encoding="utf-8")
    page.write(copy, {"elbo": sections["elbo"]})
    first = copy.read_bytes(), picture.read_bytes()
    page.write(copy, {"elbo": page.elbo()})
    assert (copy.read_bytes(), picture.read_bytes()) == first


def test_the_page_shows_every_picture_and_its_links_lead_somewhere():
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    assert [name for name in files if not (PAGE.parent / name).exists()] == []
    assert {f"theory/{path.name}" for path in (PAGE.parent / "theory").iterdir()} <= set(files)
    anchors = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
    assert {link.replace("\n", " ") for link in re.findall(r"\]\(#([^)]+)\)", text)} <= anchors


def test_the_page_names_functions_that_exist():
    names = re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", PAGE.read_text(encoding="utf-8"))
    from vae.evaluation import kl_decomposition as aggregate
    from vae.evaluation import likelihood as evaluation
    from vae.training import objectives as objective

    homes = (terms, tradeoff, objective, evaluation, aggregate)
    assert [name for name in names if not any(hasattr(home, name) for home in homes)] == []
    public = {name for home in (terms, tradeoff) for name, value in vars(home).items() if callable(value)}
    statements = {name for name in public if re.search(r"_(is|are|by|leaves|agree|shrinks|collapse|splits)_", name)}
    assert statements <= set(names), "a statement that the page doesn't mention"


def test_the_pages_maths_survives_github():
    text = re.sub(r"<!-- theory:.*?<!-- /theory:[a-z-]+ -->|```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    for line in text.splitlines():
        assert line.count("$") % 2 == 0, f"a formula across lines: {line}"
        assert not re.search(r"\\[_*{},;!]|\\\\", line), f"Markdown would eat the backslash: {line}"
        assert not re.search(r"[})\]]_", line), f"an underscore that Markdown takes for emphasis: {line}"
        for formula in re.findall(r"\$\$?([^$]+)\$", line):
            assert formula.count("{") == formula.count("}"), formula


def test_a_bar_inside_a_cell_does_not_end_it():
    text = page.markdown(page.Section([Check("p(z|x)", 1.0, 1.0)]))
    assert "| p(z\\|x) | 1 | 1 | below 1e-09 |" in text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-15, "0"), (-1.99999, "−2"), (784.0, "784"), (0.81814, "0.8181"), (7.6634e-5, "0.00007663")]
)
def test_numbers_are_short_and_free_of_rounding(value, text):
    assert page.number(value) == text


def test_a_page_without_the_blocks_is_refused():
    with pytest.raises(VAEError, match="blocks are none"):
        page.rewrite("# A page\n", {"kl": page.Section([])})


def run(monkeypatch, path, sections):
    monkeypatch.setattr(command, "SECTIONS", sections)
    monkeypatch.setattr(sys, "argv", ["vae.theory", "--page", str(path)])
    command.main()


def test_the_command_prints_each_check_and_rewrites_the_page(monkeypatch, capsys, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text("before\n<!-- theory:kl -->\nold\n<!-- /theory:kl -->\nafter\n", encoding="utf-8")
    run(monkeypatch, copy, {"kl": page.kl})
    assert capsys.readouterr().out.count("ok     kl: KL(N(") == 4
    text = copy.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- theory:kl -->\n\n| checked")
    assert text.endswith("|\n\n<!-- /theory:kl -->\nafter\n")
    assert "old" not in text


def test_a_statement_that_fails_leaves_the_page_alone(monkeypatch, capsys, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text("<!-- theory:kl -->\n<!-- /theory:kl -->\n", encoding="utf-8")
    with pytest.raises(VAEError, match="1 of the statements didn't hold"):
        run(monkeypatch, copy, {"kl": lambda: page.Section([Check("1 = 2", 1.0, 2.0)])})
    assert "FAILED kl: 1 = 2" in capsys.readouterr().out
    assert copy.read_text(encoding="utf-8") == "<!-- theory:kl -->\n<!-- /theory:kl -->\n"


def test_a_missing_page_is_told_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(VAEError, match="not found"):
        run(monkeypatch, tmp_path / "none.md", {})
