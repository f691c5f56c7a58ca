// Encoders, decoders and the further stochastic layer, as src/vae/models/{networks,hierarchy}.py defines them.
//
// Every layer is a function (x, rows) -> y of rows × channels numbers. A row is an image or, with convolutions, one
// position of an image's feature maps: feature maps are [images, height, width, channels] here.
// `tensor(name, shape)` returns the weights, and throws where the file has none of that shape.

import { FileError } from "./weights.mjs";

const INITIAL_LOGVAR = -4; // as in networks.py

// Arithmetic

/** x Wᵀ + b, four rows at a time: each weight is then read once for four products. */
function affine(x, rows, weight, bias) {
  const nOut = bias.length;
  const nIn = weight.length / nOut;
  const out = new Float32Array(rows * nOut);
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const [a, b, c, d] = [row * nIn, (row + 1) * nIn, (row + 2) * nIn, (row + 3) * nIn];
    for (let o = 0, w = 0; o < nOut; o++) {
      let [p, q, r, s] = [bias[o], bias[o], bias[o], bias[o]];
      for (let i = 0; i < nIn; i++, w++) {
        p += weight[w] * x[a + i];
        q += weight[w] * x[b + i];
        r += weight[w] * x[c + i];
        s += weight[w] * x[d + i];
      }
      [p, q, r, s].forEach((value, k) => (out[(row + k) * nOut + o] = value));
    }
  }
  for (; row < rows; row++) {
    const start = row * nIn;
    for (let o = 0, w = 0; o < nOut; o++) {
      let total = bias[o];
      for (let i = 0; i < nIn; i++, w++) total += weight[w] * x[start + i];
      out[row * nOut + o] = total;
    }
  }
  return out;
}

export const sigmoid = (v) => 1 / (1 + Math.exp(-v));

/** erf to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26). */
function erf(v) {
  const t = 1 / (1 + 0.3275911 * Math.abs(v));
  const polynomial = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(v) * (1 - polynomial * Math.exp(-v * v));
}

const ACTIVATIONS = {
  silu: (x) => x.map((v) => v * sigmoid(v)),
  relu: (x) => x.map((v) => Math.max(v, 0)),
  gelu: (x) => x.map((v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2))),
  tanh: (x) => x.map(Math.tanh),
  glu: (x, rows) => {
    const [value, gate] = halves(x, rows);
    return value.map((v, i) => v * sigmoid(gate[i]));
  },
};

/** The columns from `start` on, `width` of them, of each row. */
export function columns(x, rows, start, width) {
  const all = x.length / rows;
  const out = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    out.set(x.subarray(row * all + start, row * all + start + width), row * width);
  }
  return out;
}

export function halves(x, rows) {
  const width = x.length / rows / 2;
  return [columns(x, rows, 0, width), columns(x, rows, width, width)];
}

export function repeated(x, count) {
  const out = new Float32Array(count * x.length);
  for (let k = 0; k < count; k++) out.set(x, k * x.length);
  return out;
}

/** The rows of `a` and of `b` side by side. */
export function beside(a, b, rows) {
  const [n, m] = [a.length / rows, b.length / rows];
  const out = new Float32Array(a.length + b.length);
  for (let row = 0; row < rows; row++) {
    out.set(a.subarray(row * n, (row + 1) * n), row * (n + m));
    out.set(b.subarray(row * m, (row + 1) * m), row * (n + m) + n);
  }
  return out;
}

const reversed = (list) => [...list].reverse();

const sum = (a, b) => a.map((v, i) => v + b[i]);

/** [images, channels, positions] -> [images, positions, channels]; the other way round with the two swapped. */
function channelsLast(x, channels, positions) {
  const out = new Float32Array(x.length);
  for (let image = 0; image < x.length; image += channels * positions) {
    for (let c = 0; c < channels; c++) {
      for (let p = 0; p < positions; p++) out[image + p * channels + c] = x[image + c * positions + p];
    }
  }
  return out;
}

// Layers

const sequence = (...layers) => (x, rows) => layers.reduce((h, layer) => layer(h, rows), x);

export function linear(tensor, name, nIn, nOut) {
  const weight = tensor(`${name}.weight`, [nOut, nIn]);
  const bias = tensor(`${name}.bias`, [nOut]);
  return (x, rows) => affine(x, rows, weight, bias);
}

/** activation(W h + b), plus h where the widths allow it; `skip` joins h. */
function dense(tensor, name, nIn, nOut, { activation, residual }, nSkip = 0) {
  const layer = linear(tensor, `${name}.linear`, nIn + nSkip, activation === "glu" ? 2 * nOut : nOut);
  return (h, rows, skip) => {
    const out = ACTIVATIONS[activation](layer(nSkip ? beside(h, skip, rows) : h, rows), rows);
    return residual && nIn === nOut ? sum(out, h) : out;
  };
}

const denseStack = (tensor, name, widths, config, first = 0) =>
  widths.slice(1).map((width, i) => dense(tensor, `${name}.${first + i}`, widths[i], width, config));

/** A 3×3 convolution of maps of this height and width, as a product with the nine neighbours of each position. */
function convolution(tensor, name, nIn, nOut, [height, width], stride = 1, hasBias = true) {
  const weight = tensor(`${name}.weight`, [nOut, nIn, 3, 3]);
  const bias = hasBias ? tensor(`${name}.bias`, [nOut]) : new Float32Array(nOut);
  return (x) => {
    const images = x.length / (height * width * nIn);
    const positions = images * Math.ceil(height / stride) * Math.ceil(width / stride);
    const columns = new Float32Array(positions * nIn * 9);
    let column = 0;
    for (let image = 0; image < images; image++) {
      for (let row = 0; row < height; row += stride) {
        for (let col = 0; col < width; col += stride, column += nIn * 9) {
          for (let k = 0; k < 9; k++) {
            const [r, c] = [row + Math.floor(k / 3) - 1, col + (k % 3) - 1];
            if (r < 0 || c < 0 || r >= height || c >= width) continue;
            const start = ((image * height + r) * width + c) * nIn;
            for (let i = 0; i < nIn; i++) columns[column + i * 9 + k] = x[start + i];
          }
        }
      }
    }
    return affine(columns, positions, weight, bias);
  };
}

function convBlock(tensor, name, channels, size, { activation, residual }) {
  const body = sequence(
    ACTIVATIONS[activation],
    convolution(tensor, `${name}.body.1`, channels, channels, size),
    ACTIVATIONS[activation],
    convolution(tensor, `${name}.body.3`, channels, channels, size),
  );
  return (h, rows) => (residual ? sum(body(h, rows), h) : body(h, rows));
}

/** Four channels become 2×2 positions (nn.PixelShuffle(2)); what is more than `size` in the end is cut off. */
const pixelShuffle = (channels, [height, width], [outHeight, outWidth]) => (x) => {
  const images = x.length / (height * width * 4 * channels);
  const out = new Float32Array(images * outHeight * outWidth * channels);
  for (let from = 0; from < x.length; from++) {
    const [inner, position] = [from % (4 * channels), Math.floor(from / (4 * channels))];
    const [image, c] = [Math.floor(position / (height * width)), inner >> 2];
    const row = 2 * (Math.floor(position / width) % height) + ((inner >> 1) & 1);
    const col = 2 * (position % width) + (inner & 1);
    if (row < outHeight && col < outWidth) out[((image * outHeight + row) * outWidth + col) * channels + c] = x[from];
  }
  return out;
};

/** The number of values in an image. */
export const inputDim = ({ image_shape: [channels, height, width] }) => channels * height * width;

/** By how much the encoder's layer `i` reduces height and width. */
const scale = (i) => (i < 2 ? 2 : 1);

/** Height and width of the feature maps after 0, 1, … layers. */
function featureSizes({ image_shape: [, ...size], hidden_dims }) {
  const sizes = [size];
  hidden_dims.forEach((_, i) => sizes.push(sizes[i].map((side) => Math.ceil(side / scale(i)))));
  return sizes;
}

const area = ([height, width]) => height * width;

// Encoders: `layers`, the features of each of which further stochastic layers need, and from those of the last one the
// posterior's mean and log-variance side by side.

function mlpEncoder(tensor, config) {
  const widths = [inputDim(config), ...config.hidden_dims];
  return {
    layers: denseStack(tensor, "encoder.hidden", widths, config),
    posterior: linear(tensor, "encoder.head", widths.at(-1), 2 * config.latent_dim),
  };
}

function convEncoder(tensor, config) {
  const sizes = featureSizes(config);
  const channels = [config.image_shape[0], ...config.hidden_dims];
  const layers = config.hidden_dims.map((n, i) =>
    sequence(
      i ? (x) => x : (x) => channelsLast(x, channels[0], area(sizes[0])),
      convolution(tensor, `encoder.hidden.${i}.0`, channels[i], n, sizes[i], scale(i)),
      convBlock(tensor, `encoder.hidden.${i}.1`, n, sizes[i + 1], config),
    ),
  );
  const positions = area(sizes.at(-1));
  const widths = [channels.at(-1) * positions, ...config.dense_dims];
  const head = sequence(
    ACTIVATIONS[config.activation],
    (x) => channelsLast(x, positions, channels.at(-1)), // torch flattens channels first
    ...denseStack(tensor, "encoder.head", widths, config, 2),
    linear(tensor, `encoder.head.${widths.length + 1}`, widths.at(-1), 2 * config.latent_dim),
  );
  const L = config.latent_dim;
  return {
    layers,
    posterior: (h, images) => head(h, images).map((v, i) => (i % (2 * L) < L ? v : v + INITIAL_LOGVAR)),
  };
}

// Decoders: (z, images, stochastic) -> `outputs` numbers for each value of the images, where stochastic(i, h) adds to the
// features of the i-th layer.

function mlpDecoder(tensor, config, outputs) {
  const widths = [config.latent_dim, ...reversed(config.hidden_dims)];
  const nSkip = config.decoder_skip ? config.latent_dim : 0;
  const layers = widths
    .slice(1)
    .map((width, i) => dense(tensor, `decoder.hidden.${i}`, widths[i], width, config, i ? nSkip : 0));
  const head = linear(tensor, "decoder.head", widths.at(-1) + nSkip, outputs * inputDim(config));
  return (z, images, stochastic) => {
    const h = layers.reduce((h, layer, i) => stochastic(i, layer(h, images, z)), z);
    return head(nSkip ? beside(h, z, images) : h, images);
  };
}

function convDecoder(tensor, config, outputs) {
  const sizes = reversed(featureSizes(config));
  const channels = [...reversed(config.hidden_dims), outputs * config.image_shape[0]];
  const widths = [config.latent_dim, ...reversed(config.dense_dims)];
  const stem = sequence(
    ...denseStack(tensor, "decoder.stem", widths, config),
    linear(tensor, `decoder.stem.${widths.length - 1}`, widths.at(-1), area(sizes[0]) * channels[0]),
  );
  const last = channels.length - 2;
  const layers = channels.slice(1).map((n, i) => {
    const factor = scale(last - i);
    const block = convBlock(tensor, `decoder.hidden.${2 * i}`, channels[i], sizes[i], config);
    const up = sequence(
      ACTIVATIONS[config.activation],
      convolution(tensor, `decoder.hidden.${2 * i + 1}.1`, channels[i], n * factor ** 2, sizes[i], 1, i < last),
      factor > 1 ? pixelShuffle(n, sizes[i], sizes[i + 1]) : (x) => x,
    );
    return { block, up };
  });
  const bias = tensor("decoder.output_bias", [outputs * inputDim(config)]);
  return (z, images, stochastic) => {
    const h = layers.reduce((h, { block, up }, i) => up(stochastic(i, block(h))), stem(z, images));
    return channelsLast(h, area(sizes.at(-1)), channels.at(-1)).map((v, i) => v + bias[i % bias.length]);
  };
}

const ARCHITECTURES = { mlp: [mlpEncoder, mlpDecoder], conv: [convEncoder, convDecoder] };

/** Encoder and decoder. The decoder takes latents and a one-hot label of `classes`, and has `outputs` numbers for each value. */
export function networks(tensor, config, outputs, classes) {
  if (!(config.architecture in ARCHITECTURES)) {
    throw new FileError(`This page can't compute the model: it has no architecture “${config.architecture}”.`);
  }
  const [encoder, decoder] = ARCHITECTURES[config.architecture];
  const withLabel = { ...config, latent_dim: config.latent_dim + classes };
  return { encoder: encoder(tensor, config), decoder: decoder(tensor, withLabel, outputs) };
}

/**
 * The further stochastic layer `index`, with latents y at each position: (h, images, noise, features) -> {h, kl}.
 *
 * Without `noise` [images, noiseDim], y is the mean of p(y|·). With it, y is sampled: where there are the encoder's
 * `features`, from q(y|x, ·), which also gives the KL of each image; otherwise from p(y|·).
 */
export function stochasticLayer(tensor, index, config) {
  const conv = config.architecture === "conv";
  const [width, latents] = [config.hidden_dims.at(-1 - index), config.lower_latent_dims[index]];
  const name = `hierarchy.${index}`;
  const size = conv ? featureSizes(config).at(-1 - index) : [1, 1];
  const positions = area(size);
  const activation = ACTIVATIONS[config.activation === "glu" ? "relu" : config.activation];
  const connection = (part, nIn, nOut) =>
    conv ? convolution(tensor, `${name}.${part}`, nIn, nOut, size) : linear(tensor, `${name}.${part}`, nIn, nOut);
  const prior = sequence(activation, connection("prior.1", width, 2 * latents));
  const posterior = sequence(
    activation,
    connection("posterior.1", 2 * width, width),
    conv
      ? convBlock(tensor, `${name}.posterior.2`, width, size, config)
      : dense(tensor, `${name}.posterior.2`, width, width, config),
    activation,
    connection("posterior.4", width, 2 * latents),
  );
  const inject = connection("inject", latents, width);

  function forward(h, images, noise, features) {
    const rows = images * positions;
    const [priorMu, priorLogvar] = halves(prior(h, rows), rows);
    const kl = new Float64Array(images);
    if (!noise) return { h: sum(h, inject(priorMu, rows)), kl };
    let [mu, logvar] = [priorMu, priorLogvar];
    if (features) {
      const [shift, logScale] = halves(posterior(beside(features, h, rows), rows), rows);
      mu = sum(priorMu, shift);
      logvar = sum(priorLogvar, logScale);
      for (let i = 0; i < mu.length; i++) {
        const scaled = shift[i] * shift[i] * Math.exp(-priorLogvar[i]);
        kl[Math.floor(i / (positions * latents))] += 0.5 * (scaled + Math.exp(logScale[i]) - 1 - logScale[i]);
      }
    }
    const e = channelsLast(noise, latents, positions); // torch has channels first
    const y = mu.map((v, i) => v + Math.exp(0.5 * logvar[i]) * e[i]);
    return { h: sum(h, inject(y, rows)), kl };
  }
  return { forward, noiseDim: latents * positions };
}
