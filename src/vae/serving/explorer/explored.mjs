// What a file holds: a model and, in an explorer page, the test images that it was evaluated on.

import { payloadOf, readTensors } from "./weights.mjs";
import { VAE, total } from "./model.mjs";

export class Explored {
  constructor(bytes) {
    const file = readTensors(payloadOf(bytes));
    this.model = new VAE(file);
    this.tensors = file.tensors;
    const facts = JSON.parse(new TextDecoder().decode(this.array("facts")) || "{}"); // weights alone have none
    this.metrics = facts.metrics ?? {};
    this.params = facts.params ?? {};
    this.classes = facts.classes ?? [];
    const names = Object.keys(file.tensors).filter((name) => !name.startsWith("explorer.") && !name.endsWith(".mask"));
    this.parameters = total(names.map((name) => file.tensors[name].data.length));
  }

  array(name) {
    return this.tensors[`explorer.${name}`]?.data;
  }

  /** The number of test images. */
  get count() {
    return this.array("means").length / this.model.latentDim;
  }

  /** The labels of the test images; undefined where they have none. */
  get labels() {
    return this.array("labels");
  }

  className(label) {
    return this.classes[label] ?? `${label}`;
  }

  /** What test image `n` is called. */
  describe(n) {
    return `Test image ${n}${this.labels ? `, class ${this.className(this.labels[n])}` : ""}`;
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

  /** Test image `n` as the model got it, [D]. It has one bit a value if it is binarized, else eight. */
  image(n) {
    const [stored, D] = [this.array("images"), this.model.inputDim];
    const size = stored.length / this.count;
    if (size === D) return Float32Array.from(stored.subarray(n * D, (n + 1) * D), (v) => v / 255);
    return Float32Array.from({ length: D }, (_, i) => (stored[n * size + (i >> 3)] >> (7 - (i & 7))) & 1);
  }

  /** The share of the test images with a higher −ELBO. */
  shareAbove(cost) {
    return this.array("neg_elbo").filter((v) => v > cost).length / this.count;
  }

  /** The indices of the `count` test images whose posterior means are nearest to `mu`. */
  nearest(mu, count) {
    const [L, means] = [mu.length, this.array("means")];
    const distances = Float64Array.from({ length: this.count }, (_, n) => {
      let distance = 0;
      for (let j = 0; j < L; j++) distance += (means[n * L + j] - mu[j]) ** 2;
      return distance;
    });
    const limit = distances.slice().sort()[count - 1] ?? Infinity;
    const near = Array.from(distances.keys()).filter((n) => distances[n] <= limit);
    return near.sort((a, b) => distances[a] - distances[b]).slice(0, count);
  }
}
