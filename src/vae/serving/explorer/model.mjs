// The VAE of a weights file: encoding, decoding, the −ELBO and samples, as src/vae/models/vae.py defines them.

import { FileError } from "./weights.mjs";
import { likelihoodOf } from "./likelihoods.mjs";
import { beside, columns, inputDim, networks, repeated, stochasticLayer } from "./network.mjs";
import { LOG_2PI, priorByClass, priorOf } from "./priors.mjs";
import { normals } from "./random.mjs";

const LABEL_SCALE = 10; // of the decoder's one-hot input, as in vae.py

export class VAE {
  /** From what `readTensors` returns. Throws a FileError where that is no model, or one that this page can't compute. */
  constructor({ tensors, metadata }) {
    try {
      const { input_dim: _, classes = 0, ...config } = JSON.parse(metadata.vae); // of earlier versions, for 28 × 28 pixels
      this.config = { image_shape: [1, 28, 28], ...config };
      this.classes = classes; // 0 where the model isn't conditional
    } catch {
      throw new FileError("The file is not a model of this project: its configuration is missing or damaged.");
    }
    const tensor = (name, shape) => {
      const found = tensors[name];
      if (`${found?.shape}` !== `${shape}`) {
        throw new FileError(`The file doesn't match its own configuration: ${name} should have shape [${shape}].`);
      }
      return found.data;
    };
    const { config } = this;
    this.shape = config.image_shape; // channels, height, width
    this.inputDim = inputDim(config);
    this.likelihood = likelihoodOf(tensor, config);
    Object.assign(this, networks(tensor, config, this.likelihood.parameters, this.classes));
    this.labelImages = this.classes && tensor("label_images", [this.classes, this.inputDim]);
    this.priorByClass = config.conditional_prior && priorByClass(tensor, config, this.classes);
    this.label = 0; // the class that a conditional model encodes and decodes as, until another one is set
    this.stochastic = config.lower_latent_dims.map((_, index) => stochasticLayer(tensor, index, config));
    this.prior = priorOf(tensor, config, (x, images) => this.encode(x, images));
    this.latentDim = config.latent_dim;
    this.layerDims = this.stochastic.map(({ noiseDim }) => noiseDim);
    this.noiseDim = this.latentDim + total(this.layerDims);
  }

  /** Pixels [images, D], channels first, in [0, 1] -> mu and logvar, [images, L] each, and the features of each layer. */
  encode(x, images = 1) {
    const features = [];
    const input = this.classes ? x.map((v, i) => v + this.labelImages[this.label * this.inputDim + (i % this.inputDim)]) : x;
    for (const layer of this.encoder.layers) features.push(layer(features.at(-1) ?? input, images));
    const both = this.encoder.posterior(features.at(-1), images);
    const L = this.latentDim;
    const [mu, logvar] = [columns(both, images, 0, L), columns(both, images, L, L)];
    return { ...(this.priorByClass ? this.priorByClass.posteriorOfU(mu, logvar, this.label) : { mu, logvar }), features };
  }

  /**
   * Latents [images, L] -> the likelihood's parameters [images, P·D], and the KL of further stochastic layers, [images].
   *
   * Their latents are the means of their priors; with `noise` for each layer, [images, noiseDim], they are sampled, and
   * with the `features` that `encode` returns, from their posteriors.
   */
  decode(z, images = 1, noise = [], features = []) {
    const kl = new Float64Array(images);
    const output = this.decoder(this.#withLabel(z, images), images, (i, h) => {
      if (!this.stochastic[i]) return h;
      const result = this.stochastic[i].forward(h, images, noise[i], features.at(-1 - i));
      result.kl.forEach((v, image) => (kl[image] += v));
      return result.h;
    });
    return { output, kl };
  }

  /** Latents [images, L] and, of a conditional model, the one-hot label beside each. */
  #withLabel(z, images) {
    if (!this.classes) return z;
    const oneHot = Float32Array.from({ length: this.classes }, (_, label) => (label === this.label ? LABEL_SCALE : 0));
    const h = this.priorByClass ? this.priorByClass.fromU(z, this.label) : z;
    return beside(h, repeated(oneHot, images), images);
  }

  /** Latents [images, L] -> mean images, [images, D]; `noise` is that of further stochastic layers. */
  images(z, images = 1, noise = []) {
    return this.#means(this.decode(z, images, noise).output, images);
  }

  /** A sample of all latents from their priors: z [L], and the noise of each further stochastic layer. */
  sample(random) {
    return { z: this.prior.sample(random), noise: this.layerDims.map((dim) => normals(random, dim)) };
  }

  /** Pixels [D] -> the mean image, decoded from the posterior's mean. */
  reconstruct(x) {
    const { mu, features } = this.encode(x);
    return this.#means(this.decode(mu, 1, this.layerDims.map((dim) => new Float32Array(dim)), features).output, 1);
  }

  #means(output, images) {
    const out = new Float32Array(images * this.inputDim);
    rows(output, images).forEach((row, n) => out.set(this.likelihood.mean(row), n * this.inputDim));
    return out;
  }

  /**
   * The −ELBO of pixels [D], in nats: `reconstruction` + `kl`, means over posterior samples from standard normal
   * `noise` [samples, noiseDim]. `pixels` [D] add up to the reconstruction; `mu` and `logvar` are the posterior.
   */
  price(x, noise) {
    const samples = noise.length / this.noiseDim;
    const { mu, logvar, features } = this.encode(x);
    let start = 0;
    const [e, ...layerNoise] = [mu.length, ...this.layerDims].map((dim) => {
      start += dim;
      return columns(noise, samples, start - dim, dim);
    });
    const z = e.map((v, i) => mu[i % mu.length] + Math.exp(0.5 * logvar[i % mu.length]) * v);
    const seen = this.stochastic.length ? features.map((layer) => repeated(layer, samples)) : [];
    const { output, kl: layerKL } = this.decode(z, samples, layerNoise, seen);
    const pixels = new Float64Array(this.inputDim);
    for (const part of rows(output, samples)) this.likelihood.nll(part, x).forEach((v, i) => (pixels[i] += v / samples));
    const kl = this.#kl(mu, logvar, z, samples) + total(layerKL) / samples;
    return { reconstruction: total(pixels), kl, pixels, mu, logvar };
  }

  /** KL(q(z|x) ‖ p(z)): exact for the standard prior, otherwise −entropy − log p(z) with a mean over the samples. */
  #kl(mu, logvar, z, samples) {
    if (this.config.prior === "standard") return total(klTo(mu, logvar));
    return -0.5 * total(logvar.map((v) => 1 + v + LOG_2PI)) - total(this.prior.logDensity(z, samples)) / samples;
  }
}

const rows = (x, count) =>
  Array.from({ length: count }, (_, n) => x.subarray((n * x.length) / count, ((n + 1) * x.length) / count));

export const total = (values) => values.reduce((a, b) => a + b, 0);

/** KL(N(mu, exp(logvar)) ‖ N(m, exp(v))) of each dimension, [L]; to N(0, 1) where m and v are not given. */
export function klTo(mu, logvar, m = new Float32Array(mu.length), v = m) {
  return Float64Array.from(mu, (value, j) => {
    const ratio = logvar[j] - v[j];
    return 0.5 * ((value - m[j]) ** 2 * Math.exp(-v[j]) + Math.exp(ratio) - 1 - ratio);
  });
}

/** A point between latents, at `t` from 0 to 1: on the line, or on the great circle (Shoemake 1985). */
export function between(start, end, t, spherical) {
  const line = start.map((v, j) => v + t * (end[j] - v));
  const [a, b] = [Math.hypot(...start), Math.hypot(...end)];
  const cosine = total(start.map((v, j) => v * end[j])) / (a * b);
  const angle = Math.acos(Math.min(Math.max(cosine, -1), 1));
  if (!spherical || !(Math.sin(angle) > 1e-4)) return line; // no great circle through both, or more than one
  const [p, q] = [Math.sin((1 - t) * angle) / a, Math.sin(t * angle) / b];
  const length = (a + t * (b - a)) / Math.sin(angle);
  return start.map((v, j) => (p * v + q * end[j]) * length);
}
