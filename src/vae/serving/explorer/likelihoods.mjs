// Likelihoods p(x|z), as src/vae/models/likelihoods.py defines them: the mean image, and −log p(x|z) value by value.
//
// `parameters` is how many numbers of the decoder's output there are for each value: the first of all values, then the
// second, and so on. mean(output) -> [D] in [0, 1]; nll(output, x) -> [D] in nats.

import { FileError } from "./weights.mjs";
import { sigmoid } from "./network.mjs";

const LEVEL = 1 / 255; // the distance between two of the 256 values that 8 bits hold

const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
const limited = (v) => Math.min(Math.max(v, 0), 1);

const bernoulli = () => ({
  parameters: 1,
  mean: (output) => output.map(sigmoid),
  nll: (output, x) => Float64Array.from(output, (l, i) => softplus(l) - x[i] * l),
});

function gaussian(tensor) {
  const sigma = LEVEL + Math.exp(tensor("likelihood.log_scale", [])[0]);
  const constant = Math.log(sigma) + 0.5 * Math.log(2 * Math.PI);
  return {
    parameters: 1,
    mean: (output) => output.map(limited),
    nll: (output, x) => Float64Array.from(output, (v, i) => 0.5 * ((x[i] - v) / sigma) ** 2 + constant),
  };
}

function discretizedLogistic(tensor, { likelihood_components: K }) {
  const parameters = 3 * K - 1;
  const components = Array.from({ length: K }, (_, k) => k);

  /** The components of value `d`: weight, mean and scale of each. */
  function mixture(output, d) {
    const D = output.length / parameters;
    const weights = components.map((k) => (k < K - 1 ? Math.exp(output[k * D + d]) : 1));
    const sum = weights.reduce((a, b) => a + b);
    return components.map((k) => {
      const [mean, scale] = [K - 1 + k, 2 * K - 1 + k].map((row) => output[row * D + d]);
      return { weight: weights[k] / sum, mean, scale: LEVEL / 8 + softplus(scale) };
    });
  }

  function mean(output) {
    return Float32Array.from({ length: output.length / parameters }, (_, d) => {
      const parts = mixture(output, d).map(({ weight, mean, scale }) => {
        const area = scale * (softplus((1 - mean) / scale) - softplus(-mean / scale)); // of the cdf, from 0 to 1
        return weight * (1 - area);
      });
      return limited(parts.reduce((a, b) => a + b));
    });
  }

  function nll(output, x) {
    return Float64Array.from(x, (value, d) => {
      const level = Math.round(255 * value);
      const terms = mixture(output, d).map(({ weight, mean, scale }) => {
        const [lower, upper] = [-0.5, 0.5].map((side) => ((level + side) * LEVEL - mean) / scale);
        const [isFirst, isLast] = [level <= 0, level >= 255];
        const tails = (isFirst ? 0 : softplus(lower)) + (isLast ? 0 : softplus(-upper));
        return Math.log(weight) - tails + (isFirst || isLast ? 0 : Math.log(-Math.expm1(-LEVEL / scale)));
      });
      const largest = Math.max(...terms);
      return -largest - Math.log(terms.reduce((sum, term) => sum + Math.exp(term - largest), 0));
    });
  }
  return { parameters, mean, nll };
}

const LIKELIHOODS = { bernoulli, gaussian, discretized_logistic: discretizedLogistic };

export function likelihoodOf(tensor, config) {
  if (!(config.likelihood in LIKELIHOODS)) {
    throw new FileError(`This page can't compute the model: it has no likelihood “${config.likelihood}”.`);
  }
  return LIKELIHOODS[config.likelihood](tensor, config);
}
