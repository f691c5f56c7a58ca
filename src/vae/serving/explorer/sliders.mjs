// A slider for each active latent dimension, with a strip of the images along it.

import { repeated } from "./network.mjs";
import { betweenFrames, element, find, paint } from "./pictures.mjs";

const ACTIVE_VARIANCE = 0.01; // of a dimension's posterior means (Burda et al. 2016)
const REACH = 3; // standard deviations of the posterior means to both sides
const STEPS = 9; // images in a strip
const FIRST = 5; // sliders shown at first

/** Makes the sliders; returns a function that shows latents z on them. Calls `onChange(z)` with moved ones. */
export function makeSliders(explored, onChange) {
  const { model } = explored;
  const { mean, deviation } = explored.spread();
  const kl = explored.array("kl");
  const dimensions = Array.from(kl.keys())
    .filter((j) => deviation[j] ** 2 > ACTIVE_VARIANCE)
    .sort((a, b) => kl[b] - kl[a]);
  const schedule = betweenFrames();
  let [shown, noise] = [null, []];
  const rows = dimensions.map((j) => {
    const [low, high] = [mean[j] - REACH * deviation[j], mean[j] + REACH * deviation[j]];
    const properties = { type: "range", min: low, max: high, step: (high - low) / 200, id: `z${j}` };
    const input = element("input", properties);
    const value = element("output", { htmlFor: `z${j}` });
    const strip = element("canvas", { className: "strip", role: "img", ariaLabel: `Images along latent ${j}` });
    const name = element("label", { htmlFor: `z${j}` }, `z${j} · ${kl[j].toFixed(2)} nats`);
    input.oninput = () => onChange(shown.with(j, Number(input.value)), noise);
    const points = Float32Array.from({ length: STEPS }, (_, k) => low + ((high - low) * k) / (STEPS - 1));
    return { j, input, value, strip, points, row: element("div", { className: "latent" }, name, value, input, strip) };
  });
  find("sliders").replaceChildren(...rows.map(({ row }) => row));

  function drawStrips() {
    const visible = rows.filter(({ row }) => !row.hidden);
    schedule(
      visible.map(({ j, strip, points }) => () => {
        const z = repeated(shown, STEPS);
        points.forEach((v, k) => (z[k * shown.length + j] = v));
        paint(strip, model.images(z, STEPS, noise.map((layer) => repeated(layer, STEPS))), model.shape);
      }),
    );
  }

  const more = find("more");
  function showFirst(count) {
    rows.forEach(({ row }, rank) => (row.hidden = rank >= count));
    more.textContent = count < rows.length ? `Show all ${rows.length} active latents` : `Show the first ${FIRST} only`;
    more.hidden = rows.length <= FIRST;
    more.onclick = () => {
      showFirst(count < rows.length ? rows.length : FIRST);
      drawStrips();
    };
  }
  showFirst(FIRST);

  return (z, itsNoise) => {
    [shown, noise] = [z, itsNoise];
    for (const { j, input, value } of rows) {
      input.value = z[j];
      value.textContent = z[j].toFixed(2);
    }
    drawStrips();
  };
}
