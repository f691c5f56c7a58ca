// Canvases of 28 × 28 pixels, and work that waits between frames.

export const find = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const grey = (v) => [255 * v, 255 * v, 255 * v, 255];
const heat = (v) => [255 * Math.min(1, 2 * v), 255 * v ** 1.5, 160 * Math.max(0, v - 0.7) + 40 * (1 - v), 255];

/** Paint images [count, 784] side by side; `colour` maps a value to red, green, blue and alpha, up to 255. */
export function paint(canvas, values, colour = grey) {
  const count = values.length / 784;
  [canvas.width, canvas.height] = [28 * count, 28];
  const context = canvas.getContext("2d");
  const image = context.createImageData(28 * count, 28);
  values.forEach((v, i) => {
    const [picture, row, column] = [Math.floor(i / 784), Math.floor((i % 784) / 28), i % 28];
    image.data.set(colour(v), 4 * (row * 28 * count + picture * 28 + column));
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

export const paintCost = (canvas, pixels, largest) => paint(canvas, pixels, (v) => heat(Math.min(1, v / largest)));

export const picture = (values) => paint(element("canvas", { className: "digit" }), values);

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
