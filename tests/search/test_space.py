from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_support import small
from vae.search.space import current_values, distributions, with_values


def test_ranges_and_choices_become_optuna_distributions():
    space = {
        "latent_dim": {"low": 2, "high": 8},
        "beta": {"low": 0.5, "high": 4, "log": True},
        "activation": ["relu", "tanh"],
        "hidden_dims": [[64], [64, 32]],
        "max_grad_norm": [None, 1.0],
    }
    assert distributions(small(space=space, model__activation="silu", model__hidden_dims=[64])) == {
        "latent_dim": IntDistribution(2, 8),
        "beta": FloatDistribution(0.5, 4.0, log=True),
        "activation": CategoricalDistribution(["relu", "tanh", "silu"]),  # the current value is added
        "hidden_dims": CategoricalDistribution(["[64]", "[64, 32]"]),
        "max_grad_norm": CategoricalDistribution([None, 1.0]),
    }


def test_the_values_of_a_trial_are_set_in_their_sections():
    params = with_values(small(epochs=7), {"latent_dim": 5, "beta": 0.7, "hidden_dims": "[64, 32]", "residual": False})
    assert (params.model.latent_dim, params.model.hidden_dims, params.model.residual) == (5, (64, 32), False)
    assert (params.train.beta, params.train.epochs) == (0.7, 7)


def test_a_trial_is_not_compiled_unless_its_values_say_so():
    assert with_values(small(), {}).train.compile is False
    assert with_values(small(), {"compile": True}).train.compile is True


def test_the_values_of_params_yaml_are_the_same_after_a_round_trip_through_optuna():
    space = {"hidden_dims": [[8], [8, 8]], "lr_schedule": ["constant", "cosine"], "beta": {"low": 1, "high": 2}}
    params = small(space=space)
    again = with_values(params, current_values(params))
    assert (again.model, again.train.lr_schedule) == (params.model, params.train.lr_schedule)
