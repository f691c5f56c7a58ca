// Canvases of images, and work that waits between frames.

export const find = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const heat = (v) => [255 * Math.min(1, 2 * v), 255 * v ** 1.5, 160 * Math.max(0, v - 0.7) + 40 * (1 - v), 255];

const mean = (values) => values.reduce((a, b) => a + b) / values.length;
const asItIs = (values) => [...(values.length === 3 ? values : Array(3).fill(mean(values))).map((v) => 255 * v), 255];

/** Paint images [count, channels, height, width] side by side; `colour` maps a pixel to red, green, blue and alpha, up to 255. */
export function paint(canvas, values, [channels, height, width], colour = asItIs) {
  const area = height * width;
  const count = values.length / (channels * area);
  [canvas.width, canvas.height] = [width * count, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width * count, height);
  for (let n = 0; n < count; n++) {
    for (let p = 0; p < area; p++) {
      const pixel = Array.from({ length: channels }, (_, c) => values[(n * channels + c) * area + p]);
      image.data.set(colour(pixel), 4 * (Math.floor(p / width) * width * count + n * width + (p % width)));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Paint what each pixel of an image costs, all its channels together; returns the largest cost. */
export function paintCost(canvas, values, shape) {
  const costs = new Float64Array(shape[1] * shape[2]);
  values.forEach((v, i) => (costs[i % costs.length] += v));
  const largest = Math.max(...costs);
  paint(canvas, costs, [1, ...shape.slice(1)], ([v]) => heat(Math.min(Math.max(v / largest, 0), 1)));
  return largest;
}

export const picture = (values, shape) => paint(element("canvas", { className: "image" }), values, shape);

/** How far arrow keys move a pen or a cross, in pixels. */
export const ARROWS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };

/** A function that runs a list of jobs a few milliseconds a frame, then `after`; a new list replaces the one before. */
export function betweenFrames(after = () => {}) {
  let jobs = [];
  let waiting = false;
  function step() {
    const end = performance.now() + 8;
    while (jobs.length && performance.now() < end) jobs.shift()();
    after();
    waiting = jobs.length > 0;
    if (waiting) requestAnimationFrame(step);
  }
  return (list) => {
    jobs = list;
    if (!waiting) requestAnimationFrame(step);
    waiting = true;
  };
}
