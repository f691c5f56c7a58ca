"""Disentanglement: whether each factor by which images were made is in a latent dimension of its own."""

import numpy as np
import numpy.typing as npt

BINS = 20  # as in Locatello et al. 2019

Array = npt.NDArray[np.floating]


def information_gaps(mu: Array, factors: Array) -> Array:
    """The gap of each factor, [F], in [0, 1], from posterior means [N, L] and the images' factors [N, F].

    Their mean is the mutual information gap, MIG (Chen et al. 2018, eq. 6). A factor's gap is the difference between
    its mutual information with the latent dimension that has the most and with the one that has the second most,
    divided by the factor's entropy. 1: the factor is in one dimension. 0: in none, or in two alike.

    Means are cut into 20 bins of equal width, factors of more than 20 values into 20 bins of equal count (Locatello et
    al. 2019). The estimate is too high by about 20² / 2N nats, for all dimensions alike: N should be 10,000 or so.
    """
    from sklearn.metrics import mutual_info_score  # takes a second to import

    latents = [np.digitize(values, np.histogram_bin_edges(values, BINS)[1:-1]) for values in mu.T]
    gaps = []
    for factor in factors.T:
        if len(np.unique(factor)) > BINS:
            factor = np.digitize(factor, np.quantile(factor, np.linspace(0, 1, BINS + 1)[1:-1]))
        second, first = sorted(mutual_info_score(factor, latent) for latent in latents)[-2:]
        gaps.append((first - second) / mutual_info_score(factor, factor))
    return np.array(gaps)
