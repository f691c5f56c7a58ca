// From a drawing to the model's input, as MNIST was made (LeCun et al. 1998): the ink is scaled to fit 20 × 20 pixels,
// and its centre of mass is moved to pixel 14 of 28 × 28, as far as all of the ink stays inside.

/** Grey values in [0, 1], side × side -> [784]; null where there is no ink. */
export function toMNIST(ink, side) {
  let [left, right, top, bottom] = [side, 0, side, 0];
  ink.forEach((v, i) => {
    if (!v) return;
    left = Math.min(left, i % side);
    right = Math.max(right, (i % side) + 1);
    top = Math.min(top, Math.floor(i / side));
    bottom = Math.max(bottom, Math.floor(i / side) + 1);
  });
  if (right <= left) return null;
  const scale = 20 / Math.max(right - left, bottom - top);
  const [width, height] = [right - left, bottom - top].map((length) => Math.max(1, Math.round(length * scale)));
  const small = shrunk(ink, side, [left, right, top, bottom], width, height);
  let [mass, x, y] = [0, 0, 0];
  small.forEach((v, i) => {
    mass += v;
    x += v * (i % width);
    y += v * Math.floor(i / width);
  });
  const placed = (centre, length) => Math.min(Math.max(Math.round(14 - centre), 0), 28 - length);
  const [dx, dy] = [placed(x / mass, width), placed(y / mass, height)];
  const out = new Float32Array(784);
  small.forEach((v, i) => {
    out[(Math.floor(i / width) + dy) * 28 + (i % width) + dx] = v;
  });
  return out;
}

/** The part of an image, as width × height means over areas. */
function shrunk(ink, side, [left, right, top, bottom], width, height) {
  const out = new Float32Array(width * height);
  const [stepX, stepY] = [(right - left) / width, (bottom - top) / height];
  const overlap = (start, step, pixel) => Math.min(start + step, pixel + 1) - Math.max(start, pixel);
  for (let i = 0; i < out.length; i++) {
    const [x, y] = [left + (i % width) * stepX, top + Math.floor(i / width) * stepY];
    for (let row = Math.floor(y); row < y + stepY && row < side; row++) {
      for (let column = Math.floor(x); column < x + stepX && column < side; column++) {
        out[i] += (ink[row * side + column] * overlap(x, stepX, column) * overlap(y, stepY, row)) / (stepX * stepY);
      }
    }
  }
  return out;
}

/** The binarization of the evaluation. Where that draws at random, `thresholds` [784] are fixed: a drawing stays as it is. */
export function binarized(grey, binarization, thresholds) {
  if (binarization === "none") return grey;
  if (binarization === "threshold") return grey.map((v) => (v > 0.5 ? 1 : 0));
  return grey.map((v, i) => (thresholds[i] < v ? 1 : 0));
}
