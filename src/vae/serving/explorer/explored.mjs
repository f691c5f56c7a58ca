// What a file holds: a model and, in an explorer page, the test images that it was evaluated on.

import { payloadOf, readTensors } from "./weights.mjs";
import { VAE, total } from "./model.mjs";

export class Explored {
  constructor(bytes) {
    const file = readTensors(payloadOf(bytes));
    this.model = new VAE(file);
    const { metrics = {}, training = {} } = JSON.parse(file.metadata.explorer ?? "{}");
    Object.assign(this, { metrics, training, tensors: file.tensors });
    const counted = ([name]) => !name.startsWith("explorer.") && !name.endsWith(".mask");
    const sizes = Object.entries(file.tensors).filter(counted).map(([, { data }]) => data.length);
    this.parameters = total(sizes);
  }

  array(name) {
    return this.tensors[`explorer.${name}`]?.data;
  }

  get labels() {
    return this.array("labels");
  }

  get binarization() {
    return this.metrics.binarization ?? "dynamic";
  }

  /** The posterior mean of test image `n`, [L]. */
  mean(n) {
    const L = this.model.latentDim;
    return this.array("means").slice(n * L, (n + 1) * L);
  }

  /** Mean and standard deviation of the posterior means by dimension, [L] each. */
  spread() {
    const [L, means] = [this.model.latentDim, this.array("means")];
    const [mean, square, count] = [new Float64Array(L), new Float64Array(L), means.length / L];
    means.forEach((v, i) => {
      mean[i % L] += v / count;
      square[i % L] += (v * v) / count;
    });
    return { mean, deviation: square.map((v, j) => Math.sqrt(Math.max(0, v - mean[j] ** 2))) };
  }

  /** The mean of the posterior means of the images at these indices, [L]. */
  average(indices) {
    const out = new Float32Array(this.model.latentDim);
    for (const n of indices) this.mean(n).forEach((v, j) => (out[j] += v / indices.length));
    return out;
  }

  ofClass(label) {
    return Array.from(this.labels.keys()).filter((n) => this.labels[n] === label);
  }

  /** Test image `n` as the model got it, [784]. */
  image(n) {
    const packed = this.array("images");
    return Float32Array.from({ length: 784 }, (_, i) => (packed[n * 98 + (i >> 3)] >> (7 - (i & 7))) & 1);
  }

  /** The share of the test images with a higher −ELBO. */
  shareAbove(cost) {
    return this.array("neg_elbo").filter((v) => v > cost).length / this.labels.length;
  }

  /** The indices of the `count` test images whose posterior means are nearest to `mu`. */
  nearest(mu, count) {
    const [L, means] = [mu.length, this.array("means")];
    const distances = Float64Array.from(this.labels, (_, n) => {
      let distance = 0;
      for (let j = 0; j < L; j++) distance += (means[n * L + j] - mu[j]) ** 2;
      return distance;
    });
    return Array.from(distances.keys()).sort((a, b) => distances[a] - distances[b]).slice(0, count);
  }
}
