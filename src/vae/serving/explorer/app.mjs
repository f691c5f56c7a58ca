// The page: one state, the latents that are shown, and what shows or changes them.

import { between } from "./model.mjs";
import { describeModel, makeComparison } from "./compare.mjs";
import { makeDrawing } from "./drawing.mjs";
import { Explored } from "./explored.mjs";
import { makeMap } from "./map.mjs";
import { element, find, paint } from "./pictures.mjs";
import { randomFrom } from "./random.mjs";
import { makeSliders } from "./sliders.mjs";
import { FileError, fromBase64 } from "./weights.mjs";

const PATH_STEPS = 11; // images of an interpolation

function start(explored) {
  const { model } = explored;
  const state = { z: null, text: "", noise: [], x: null };
  showFacts(explored);

  function show(z, text, noise = []) {
    Object.assign(state, { z, text, noise });
    paint(find("image"), model.images(z, 1, noise), model.shape);
    find("what").textContent = model.classes ? `${text}, decoded as class ${explored.className(model.label)}` : text;
    showOnSliders(z, noise);
    compare(state);
  }

  const compare = makeComparison(explored);
  const showOnSliders = makeSliders(explored, (z, noise) => show(z, "Moved by hand", noise));
  const path = makePath(explored, state, show);
  const decodeMap = makeMap(explored, {
    onSelect(n) {
      setClassOf(n);
      const cost = explored.array("neg_elbo")[n].toFixed(1);
      find("map-status").textContent = `${explored.describe(n)}: −ELBO of ${cost} nats`;
      show(explored.mean(n), explored.describe(n));
    },
    onPath(from, to) {
      setClassOf(from);
      find("map-status").textContent = `${explored.describe(from)}, to ${explored.describe(to).replace("Test", "test")}`;
      path.start(explored.mean(from), explored.mean(to));
      show(explored.mean(from), "Start of the interpolation");
    },
  });

  const random = randomFrom(Date.now());
  find("prior").onclick = () => {
    const { z, noise } = model.sample(random);
    show(z, "A sample from the prior", noise);
  };
  makeClassButtons(explored, show);
  if (model.classes) model.label = explored.labels[0];
  path.start(explored.mean(0), explored.mean(1));
  show(explored.mean(0), explored.describe(0));
  const priceDrawing = makeDrawing(explored, {
    onDrawn(x) {
      state.x = x;
      compare(state);
    },
    onExplore: show,
  });
  const setClass = makeClassChoice(explored, () => {
    decodeMap();
    path.draw();
    priceDrawing();
    show(state.z, state.text, state.noise);
  });
  const setClassOf = (n) => model.classes && setClass(explored.labels[n]);
}

/** The choice of a conditional model's class; returns a function that sets it. `onChange` draws the page as that class. */
function makeClassChoice(explored, onChange) {
  const { model } = explored;
  const select = find("class");
  for (const id of ["class-bar", "class-help"]) find(id).hidden = !model.classes;
  for (let value = 0; value < model.classes; value++) select.append(element("option", { value }, explored.className(value)));
  select.value = model.label;
  select.onchange = () => set(Number(select.value));
  function set(label) {
    if (label === model.label) return;
    model.label = select.value = label;
    onChange();
  }
  return set;
}

function makeClassButtons(explored, show) {
  find("classes").hidden = !explored.labels;
  if (!explored.labels) return;
  const classes = [...new Set(explored.labels)].sort((a, b) => a - b);
  const mean = (label) => explored.average(explored.ofClass(Number(label)));
  const name = (label) => explored.className(label);
  const [one, ...three] = document.querySelectorAll("#classes select");
  const options = () => classes.map((value) => element("option", { value }, name(value)));
  for (const select of [one, ...three]) select.append(...options());
  [8, 3, 1].forEach((label, i) => (three[i].value = classes.includes(label) ? label : classes[i % classes.length]));
  one.onchange = () => show(mean(one.value), `Mean of class ${name(one.value)}`);
  find("calculate").onclick = () => {
    const [a, b, c] = three.map((select) => mean(select.value));
    const [p, q, r] = three.map((select) => name(select.value));
    show(a.map((v, j) => v - b[j] + c[j]), `Mean of ${p} − mean of ${q} + mean of ${r}`);
  };
}

/** The interpolation below the map; returns `start`, for one between two latents, and `draw`, for it as another class. */
function makePath({ model }, state, show) {
  let ends;
  const spherical = () => document.querySelector("[name=line]:checked").value === "spherical";
  const at = (t) => between(...ends, t, spherical());
  function draw() {
    const z = new Float32Array(PATH_STEPS * model.latentDim);
    for (let k = 0; k < PATH_STEPS; k++) z.set(at(k / (PATH_STEPS - 1)), k * model.latentDim);
    paint(find("path"), model.images(z, PATH_STEPS), model.shape);
  }
  function go(from, to) {
    ends = [from, to];
    draw();
  }
  const position = find("position");
  position.oninput = () => show(at(Number(position.value)), `${Math.round(100 * position.value)} % of the way`);
  for (const radio of document.querySelectorAll("[name=line]")) radio.onchange = draw;
  find("path-start").onclick = () => go(state.z, ends[1]);
  find("path-end").onclick = () => go(ends[0], state.z);
  function start(from, to) {
    position.value = 0;
    go(from, to);
  }
  return { start, draw };
}

function showFacts(explored) {
  const { metrics, params, model } = explored;
  const [elbo, reconstruction, kl, nll] = ["elbo", "reconstruction", "kl", "nll"].map((key) => Math.abs(metrics[key]).toFixed(2));
  const error = "nll_standard_error" in metrics ? ` ± ${metrics.nll_standard_error.toFixed(2)}` : "";
  const [all, count] = [metrics.n_test, explored.count].map((n) => n.toLocaleString("en"));
  const images = `${all} test images${metrics.dataset ? ` of ${metrics.dataset}` : ""}${all === count ? "" : `, the first ${count} here`}`;
  find("model").textContent = describeModel(explored);
  find("metrics").textContent =
    `Test −ELBO ${elbo} = reconstruction ${reconstruction} + KL ${kl}, NLL ${nll}${error} nats per image${model.classes ? " of a known class" : ""} ` +
    `(${metrics.importance_samples} importance samples, binarization ${explored.binarization}, ${images})`;
  const dotted = (prefix, values) => Object.entries(values).map(([key, value]) => [`${prefix}.${key}`, value]);
  const facts = [...dotted("model", model.config), ...Object.entries(params), ...dotted("test", metrics)];
  for (const [name, value] of facts) {
    find("facts").append(element("dt", {}, name), element("dd", {}, value === null ? "none" : `${value}`));
  }
  document.querySelector("[value=embedding]").closest("label").hidden = !explored.array("embedding");
  if (model.latentDim <= 2) find("pca").textContent = "the latents as they are";
}

try {
  start(new Explored(fromBase64(find("payload").textContent.trim())));
} catch (error) {
  find("notice").textContent = error.message;
  document.querySelector("main").hidden = true;
  if (!(error instanceof FileError)) throw error;
}
