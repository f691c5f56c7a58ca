// An image of your own: encoded, reconstructed and priced. Where images are as MNIST's, it is drawn, else read from a file.

import { binarized, toMNIST } from "./digit.mjs";
import { klTo } from "./model.mjs";
import { ARROWS, element, find, paint, paintCost, picture } from "./pictures.mjs";
import { normals, randomFrom } from "./random.mjs";

const SIDE = 280;
const SAMPLES = 16; // of the posterior
const NEAREST = 8;
const AS_IT_IS = "Its values stay as they are, as in the evaluation.";
const CUT = "Pixels above one half become white, as in the evaluation.";
const BY_CHANCE = "Each pixel becomes white with the probability of its grey value, as in the evaluation, by fixed random numbers.";
const DENSITY = " The price is that of a density of values from 0 to 1, and may be negative.";

/** The price of an input [D] to a model, with the same noise each time. */
export function priceOf(model, x) {
  return model.price(x, normals(randomFrom(1), SAMPLES * model.noiseDim));
}

/**
 * Calls `onDrawn(x)` with the model's input, null where there is none, and `onExplore(mu, text)` with latents to show.
 * Returns a function that encodes and prices the image anew, as another class.
 */
export function makeDrawing(explored, { onDrawn, onExplore }) {
  const { model, model: { shape } } = explored;
  const isDrawn = `${shape}` === "1,28,28";
  const thresholds = Float32Array.from({ length: model.inputDim }, randomFrom(2).uniform);
  let [shown, posterior] = [null, null];
  for (const [id, isShown] of [["ink-frame", isDrawn], ["clear", isDrawn], ["picture-label", !isDrawn]]) find(id).hidden = !isShown;
  find("draw-title").textContent = isDrawn ? "Draw an image" : "Price an image of your own";
  const treated = { none: AS_IT_IS, threshold: CUT }[explored.binarization] ?? BY_CHANCE;
  const how = treated + (model.config.likelihood === "gaussian" ? DENSITY : "");
  find("draw-help").textContent = isDrawn
    ? "Draw with the mouse or a finger. Keys: Space puts the pen down and lifts it, arrows move it. The ink is scaled to 20 × 20 " +
      `pixels and centred by mass, as MNIST was. ${how}`
    : `Choose a picture, or drop it on this page, in which it stays. It is scaled to cover ${shape[2]} × ${shape[1]} pixels, and ` +
      `its middle is kept. ${how}`;
  const exact = model.config.prior === "standard";
  find("bars-title").textContent = `KL by latent dimension${exact ? "" : ", to a normal fit of the aggregate posterior"}`;

  /** Shows an image with values in [0, 1]; null where there is none. */
  function show(values) {
    shown = values;
    const x = values && binarized(values, explored.binarization, thresholds);
    const empty = new Float32Array(model.inputDim);
    paint(find("input"), x ?? empty, shape);
    paint(find("rebuilt"), x ? model.reconstruct(x) : empty, shape);
    posterior = x && priceOf(model, x);
    find("explore").disabled = !x;
    if (x) describe();
    else {
      find("price").textContent = isDrawn ? "Nothing is drawn yet." : "No image is chosen yet.";
      paint(find("cost"), empty, shape);
      find("bars").replaceChildren();
      find("nearest").replaceChildren();
    }
    onDrawn(x);
  }

  function describe() {
    const { reconstruction, kl, pixels, mu, logvar } = posterior;
    const above = Math.round(100 * explored.shareAbove(reconstruction + kl));
    const subject = model.classes ? `As class ${explored.className(model.label)}, your image` : "Your image";
    find("price").textContent =
      `${subject} costs ${(reconstruction + kl).toFixed(1)} nats: reconstruction ${reconstruction.toFixed(1)} + ` +
      `KL ${kl.toFixed(1)}. ${above}\u00a0% of the test images cost more.`;
    const largest = paintCost(find("cost"), pixels, shape);
    find("cost-caption").textContent = `cost by pixel, up to ${largest.toFixed(1)} nats`;
    drawBars(mu, logvar);
    const nearest = explored.nearest(mu, NEAREST).map((n) => {
      const properties = { ariaLabel: explored.describe(n), onclick: () => onExplore(explored.mean(n), explored.describe(n)) };
      return element("button", properties, picture(explored.image(n), shape));
    });
    find("nearest").replaceChildren(...nearest);
  }

  function drawBars(mu, logvar) {
    const L = mu.length;
    const reference = explored.array("reference");
    const kl = klTo(mu, logvar, reference.subarray(0, L), reference.subarray(L));
    const order = Array.from(kl.keys()).sort((a, b) => kl[b] - kl[a]);
    const bars = order.map((j) => {
      const bar = element("i", { title: `z${j}: ${kl[j].toFixed(2)} nats` });
      bar.style.height = `${(100 * kl[j]) / kl[order[0]]}%`;
      return bar;
    });
    find("bars").replaceChildren(...bars);
    const top = order.slice(0, 5).map((j) => `z${j} ${kl[j].toFixed(1)}`);
    find("bars").ariaLabel = `KL in nats, largest first: ${top.join(", ")}`;
  }

  find("explore").onclick = () => onExplore(posterior.mu, "Posterior mean of your image");
  show(null);
  if (isDrawn) makeInk(show);
  else {
    find("picture").onchange = async ({ target: { files: [file] } }) => {
      find("notice").textContent = "";
      try {
        show(file ? await readPicture(file, shape) : null);
      } catch {
        find("notice").textContent = `${file.name} can't be read as a picture.`;
      }
    };
  }
  return () => show(shown);
}

/** The drawing area; calls `onInk` with the drawing as MNIST's digits are, [784], and with null where it is empty. */
function makeInk(onInk) {
  const canvas = find("ink");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
  let [last, waiting] = [null, false];
  let [pen, isDown] = [[SIDE / 2, SIDE / 4], false]; // of the keyboard

  function stroke(x, y) {
    context.beginPath();
    context.moveTo(...(last ?? [x, y]));
    context.lineTo(x, y);
    context.stroke();
    last = [x, y];
    if (!waiting) requestAnimationFrame(showInk);
    waiting = true;
  }

  function showInk() {
    waiting = false;
    const { data } = context.getImageData(0, 0, SIDE, SIDE);
    onInk(toMNIST(Float32Array.from({ length: SIDE * SIDE }, (_, i) => data[4 * i + 3] / 255), SIDE));
  }

  const scaled = (event) => [event.offsetX, event.offsetY].map((v) => (v * SIDE) / canvas.clientWidth);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(...scaled(event));
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && stroke(...scaled(event)));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") isDown = !isDown;
    else if (event.key in ARROWS) pen = ARROWS[event.key].map((step, i) => Math.min(Math.max(pen[i] + step, 0), SIDE));
    else return;
    event.preventDefault();
    if (isDown) stroke(...pen);
    else last = null;
    find("pen").hidden = false;
    Object.assign(find("pen").style, { left: `${(100 * pen[0]) / SIDE}%`, top: `${(100 * pen[1]) / SIDE}%` });
  });
  canvas.addEventListener("blur", () => (find("pen").hidden = true));
  find("clear").onclick = () => {
    context.clearRect(0, 0, SIDE, SIDE);
    showInk();
  };
}

/** A picture file as an image of this shape, values in [0, 1], as the pipeline reads a folder of pictures. */
async function readPicture(file, [channels, height, width]) {
  const bitmap = await createImageBitmap(file);
  const context = Object.assign(element("canvas"), { width, height }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // below what is transparent
  context.fillRect(0, 0, width, height);
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = ([r, g, b]) => [Math.round(0.299 * r + 0.587 * g + 0.114 * b)];
  const pixels = Array.from({ length: width * height }, (_, p) => data.subarray(4 * p, 4 * p + 3));
  const [values, area] = [channels === 3 ? pixels : pixels.map(grey), pixels.length];
  return Float32Array.from({ length: channels * area }, (_, i) => values[i % area][Math.floor(i / area)] / 255);
}
