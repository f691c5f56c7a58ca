// A drawn digit: encoded, reconstructed and priced while it is drawn.

import { binarized, toMNIST } from "./digit.mjs";
import { klTo } from "./model.mjs";
import { ARROWS, element, find, paint, paintCost, picture } from "./pictures.mjs";
import { normals, randomFrom } from "./random.mjs";

const SIDE = 280;
const SAMPLES = 16; // of the posterior
const NEAREST = 8;
const HOW = {
  none: "It stays grey, as in the evaluation: its price is then a cross-entropy.",
  threshold: "Pixels above one half become white, as in the evaluation.",
};
const BY_CHANCE = "Each pixel becomes white with the probability of its grey value, as in the evaluation, by fixed random numbers.";

/** The price of an input [784] to a model, with the same noise each time. */
export function priceOf(model, x) {
  return model.price(x, normals(randomFrom(1), SAMPLES * model.noiseDim));
}

/** Calls `onDrawn(x)` with the model's input, null without ink, and `onExplore(mu, text)` with latents to show. */
export function makeDrawing(explored, { onDrawn, onExplore }) {
  const { model } = explored;
  const canvas = find("ink");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const thresholds = Float32Array.from({ length: 784 }, randomFrom(2).uniform);
  Object.assign(context, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
  let [last, waiting, posterior] = [null, false, null];
  let [pen, isDown] = [[SIDE / 2, SIDE / 4], false]; // of the keyboard

  find("draw-help").textContent =
    "Draw with the mouse or a finger. Keys: Space puts the pen down and lifts it, arrows move it. The ink is scaled to 20 × 20 " +
    `pixels and centred by mass, as MNIST was. ${HOW[explored.binarization] ?? BY_CHANCE}`;
  const exact = model.config.prior === "standard";
  find("bars-title").textContent = `KL by latent dimension${exact ? "" : ", to a normal fit of the aggregate posterior"}`;

  function stroke(x, y) {
    context.beginPath();
    context.moveTo(...(last ?? [x, y]));
    context.lineTo(x, y);
    context.stroke();
    last = [x, y];
    if (!waiting) requestAnimationFrame(show);
    waiting = true;
  }

  function show() {
    waiting = false;
    const { data } = context.getImageData(0, 0, SIDE, SIDE);
    const ink = Float32Array.from({ length: SIDE * SIDE }, (_, i) => data[4 * i + 3] / 255);
    const drawn = toMNIST(ink, SIDE);
    const x = drawn && binarized(drawn, explored.binarization, thresholds);
    const empty = new Float32Array(784);
    paint(find("input"), x ?? empty);
    paint(find("rebuilt"), x ? model.reconstruct(x) : empty);
    posterior = x && priceOf(model, x);
    find("explore").disabled = !x;
    if (x) describe();
    else {
      find("price").textContent = "Nothing is drawn yet.";
      paint(find("cost"), empty);
      find("bars").replaceChildren();
      find("nearest").replaceChildren();
    }
    onDrawn(x);
  }

  function describe() {
    const { reconstruction, kl, pixels, mu, logvar } = posterior;
    const above = Math.round(100 * explored.shareAbove(reconstruction + kl));
    find("price").textContent =
      `Your digit costs ${(reconstruction + kl).toFixed(1)} nats: reconstruction ${reconstruction.toFixed(1)} + ` +
      `KL ${kl.toFixed(1)}. ${above}\u00a0% of the test images cost more.`;
    const largest = Math.max(...pixels);
    paintCost(find("cost"), pixels, largest);
    find("cost-caption").textContent = `cost by pixel, up to ${largest.toFixed(1)} nats`;
    drawBars(mu, logvar);
    const nearest = explored.nearest(mu, NEAREST).map((n) => {
      const label = `Test image ${n}, class ${explored.labels[n]}`;
      return element("button", { ariaLabel: label, onclick: () => onExplore(explored.mean(n), label) }, picture(explored.image(n)));
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
    show();
  };
  find("explore").onclick = () => onExplore(posterior.mu, "Posterior mean of your drawing");
  show();
}
