// Priors p(z), as src/vae/models/priors.py defines them: log-densities in nats, and samples.

import { FileError } from "./weights.mjs";
import { halves, inputDim, linear, sigmoid } from "./network.mjs";
import { normals } from "./random.mjs";

export const LOG_2PI = Math.log(2 * Math.PI);

const logNormal = (e, start, length) => {
  let total = 0;
  for (let i = start; i < start + length; i++) total -= 0.5 * (e[i] * e[i] + LOG_2PI);
  return total;
};

const standard = (tensor, { latent_dim: L }) => ({
  logDensity: (z, rows) => Float64Array.from({ length: rows }, (_, row) => logNormal(z, row * L, L)),
  sample: (random) => normals(random, L),
});

/** A mixture of normals. `components()` returns means and log-variances, [C, L] each, and log-weights, [C]. */
function mixture({ latent_dim: L }, components) {
  function logDensity(z, rows) {
    const { mu, logvar, logWeight } = components();
    return Float64Array.from({ length: rows }, (_, row) => {
      const terms = logWeight.map((w, c) => {
        let distance = 0;
        for (let j = 0; j < L; j++) {
          const [difference, v] = [z[row * L + j] - mu[c * L + j], logvar[c * L + j]];
          distance += difference * difference * Math.exp(-v) + v + LOG_2PI;
        }
        return w - 0.5 * distance;
      });
      return logSumExp(terms);
    });
  }
  function sample(random) {
    const { mu, logvar, logWeight } = components();
    let remaining = random.uniform();
    let chosen = 0;
    while (chosen < logWeight.length - 1 && (remaining -= Math.exp(logWeight[chosen])) >= 0) chosen++;
    const noise = normals(random, L);
    return noise.map((e, j) => mu[chosen * L + j] + Math.exp(0.5 * logvar[chosen * L + j]) * e);
  }
  return { logDensity, sample };
}

function logSumExp(terms) {
  const largest = terms.reduce((a, b) => Math.max(a, b));
  return largest + Math.log(terms.reduce((total, term) => total + Math.exp(term - largest), 0));
}

function gaussianMixture(tensor, config) {
  const { latent_dim: L, prior_components: C } = config;
  const logits = Float64Array.from(tensor("prior.weight_logits", [C]));
  const [mu, logvar, total] = [tensor("prior.mu", [C, L]), tensor("prior.logvar", [C, L]), logSumExp(logits)];
  const parts = { mu, logvar, logWeight: logits.map((v) => v - total) };
  return mixture(config, () => parts);
}

function vampPrior(tensor, config, encode) {
  const C = config.prior_components;
  const pseudoImages = tensor("prior.pseudo_images", [C, inputDim(config)]).map((v) => Math.min(Math.max(v, 0), 1));
  const logWeight = new Float64Array(C).fill(-Math.log(C));
  let parts; // encoding all pseudo-images takes a while: only when the prior is first needed
  return mixture(config, () => (parts ??= { ...encode(pseudoImages, C), logWeight }));
}

function realNVP(tensor, config) {
  const [L, width] = [config.latent_dim, config.prior_width];
  const couplings = Array.from({ length: config.prior_couplings }, (_, i) => {
    const name = `prior.couplings.${i}`;
    const mask = tensor(`${name}.mask`, [L]);
    const layers = [[0, L, width], [2, width, width], [4, width, 2 * L]].map(([k, nIn, nOut]) =>
      linear(tensor, `${name}.network.${k}`, nIn, nOut),
    );
    const silu = (x) => x.map((v) => v * sigmoid(v));
    return (z, rows) => {
      const kept = z.map((v, j) => v * mask[j % L]);
      const [a, b] = [silu(layers[0](kept, rows)), rows];
      const [logScale, shift] = halves(layers[2](silu(layers[1](a, b)), rows), rows);
      return {
        logScale: logScale.map((v, j) => 2 * Math.tanh(v / 2) * (1 - mask[j % L])),
        shift: shift.map((v, j) => v * (1 - mask[j % L])),
      };
    };
  });
  function logDensity(z, rows) {
    const total = new Float64Array(rows);
    let e = z;
    for (const coupling of couplings) {
      const { logScale, shift } = coupling(e, rows);
      e = e.map((v, i) => v * Math.exp(logScale[i]) + shift[i]);
      logScale.forEach((v, i) => (total[Math.floor(i / L)] += v));
    }
    return total.map((determinant, row) => determinant + logNormal(e, row * L, L));
  }
  function sample(random) {
    return couplings.reduceRight((z, coupling) => {
      const { logScale, shift } = coupling(z, 1);
      return z.map((v, i) => (v - shift[i]) * Math.exp(-logScale[i]));
    }, normals(random, L));
  }
  return { logDensity, sample };
}

/** p(z|y): z = shift + scale · u of each class, with u from the prior. */
export function priorByClass(tensor, { latent_dim: L }, classes) {
  const [shift, logScale] = ["shift", "log_scale"].map((name) => tensor(`prior_by_class.${name}`, [classes, L]));
  const at = (label, i) => label * L + (i % L);
  return {
    fromU: (u, label) => u.map((v, i) => shift[at(label, i)] + Math.exp(logScale[at(label, i)]) * v),
    posteriorOfU: (mu, logvar, label) => ({
      mu: mu.map((v, i) => (v - shift[at(label, i)]) * Math.exp(-logScale[at(label, i)])),
      logvar: logvar.map((v, i) => v - 2 * logScale[at(label, i)]),
    }),
  };
}

const PRIORS = { standard, gaussian_mixture: gaussianMixture, vampprior: vampPrior, realnvp: realNVP };

/** The prior named in `config`: logDensity(z, rows) -> [rows], and sample(random) -> [L]. */
export function priorOf(tensor, config, encode) {
  if (!(config.prior in PRIORS)) throw new FileError(`This page can't compute the model: it has no prior “${config.prior}”.`);
  return PRIORS[config.prior](tensor, config, encode);
}
