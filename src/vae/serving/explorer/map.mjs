// The map: posterior means of the test images in the plane, over images decoded from means of neighbours.

import { ARROWS, betweenFrames, element, find, paint } from "./pictures.mjs";

// Of ten classes; each has its name on the map, too, since colour alone should not carry it.
const COLOURS = ["#4e79d6", "#e8801a", "#2f9e44", "#d64550", "#9467bd"];
COLOURS.push("#a0693f", "#d66bb5", "#7d7d85", "#a5a522", "#17a2b8");
const NAMED = 20; // classes at most that have their names on the map
const TILE = 44; // CSS pixels, the longer side
const SAME_PLACE = 6; // CSS pixels that a pointer may move in a click

/**
 * Draws the map of `explored`. Calls `onSelect(n)` with a test image, and `onPath(from, to)` with two.
 * Returns a function that decodes the images behind the dots anew, as another class.
 */
export function makeMap(explored, { onSelect, onPath }) {
  const canvas = find("map");
  const context = canvas.getContext("2d");
  const schedule = betweenFrames(draw);
  const tiles = element("canvas");
  const { model, labels } = explored;
  const isInk = model.shape[0] === 1 && explored.binarization !== "none";
  const [tileHeight, tileWidth] = model.shape.slice(1).map((side, _, sides) => Math.max(8, (TILE * side) / Math.max(...sides)));
  const classes = new Set(labels).size; // none without labels
  const colourOf = (label) =>
    classes <= COLOURS.length ? COLOURS[label % COLOURS.length] : `hsl(${(360 * label) / classes} 65% ${label % 2 ? 42 : 58}%)`;
  let points; // [x, y] of each image, one after the other
  let view; // the middle of the map, and CSS pixels a unit
  let [cursor, drag, chosen, line] = [null, null, null, null];

  const size = () => canvas.clientWidth;
  const toScreen = (x, y) => [(x - view.x) * view.scale + size() / 2, size() / 2 - (y - view.y) * view.scale];
  const toPlane = (x, y) => [view.x + (x - size() / 2) / view.scale, view.y - (y - size() / 2) / view.scale];
  const place = (n) => toScreen(points[2 * n], points[2 * n + 1]);
  const count = () => points.length / 2;

  function project(name) {
    points = name === "embedding" ? explored.array("embedding") : principal();
    const [x, y] = [0, 1].map((axis) => points.filter((_, i) => i % 2 === axis).sort());
    const extent = Math.max(x.at(-1) - x[0], y.at(-1) - y[0], 1e-6);
    view = { x: (x[0] + x.at(-1)) / 2, y: (y[0] + y.at(-1)) / 2, scale: (0.94 * size()) / extent };
    [chosen, line, cursor] = [null, null, null];
    changed();
  }

  function principal() {
    const [L, means] = [explored.model.latentDim, explored.array("means")];
    const [center, axes] = [explored.array("center"), explored.array("axes")];
    const out = new Float32Array(2 * explored.count);
    means.forEach((v, i) => {
      const [n, j] = [Math.floor(i / L), i % L];
      out[2 * n] += (v - center[j]) * axes[j];
      out[2 * n + 1] += (v - center[j]) * axes[L + j];
    });
    return out;
  }

  function nearest(x, y) {
    const [px, py] = toPlane(x, y);
    let [best, distance] = [0, Infinity];
    for (let n = 0; n < count(); n++) {
      const d = (points[2 * n] - px) ** 2 + (points[2 * n + 1] - py) ** 2;
      if (d < distance) [best, distance] = [n, d];
    }
    return best;
  }

  /** The view has changed: draw it, and decode its tiles anew. */
  function changed() {
    const ratio = window.devicePixelRatio || 1;
    for (const layer of [canvas, tiles]) [layer.width, layer.height] = [size() * ratio, size() * ratio];
    const cells = new Map();
    for (let n = 0; n < count(); n++) {
      const [x, y] = place(n);
      if (x < 0 || y < 0 || x >= size() || y >= size()) continue;
      const [column, row] = [Math.floor(x / tileWidth), Math.floor(y / tileHeight)];
      const key = `${column},${row}`;
      if (!cells.has(key)) cells.set(key, { column, row, members: [] });
      cells.get(key).members.push(n);
    }
    const ink = getComputedStyle(canvas).color.match(/\d+/g).map(Number);
    const layer = tiles.getContext("2d");
    layer.scale(ratio, ratio);
    schedule(
      [...cells.values()].map(({ column, row, members }) => () => {
        const asInk = isInk ? ([v]) => [...ink.slice(0, 3), 255 * v] : undefined;
        const image = paint(element("canvas"), model.images(explored.average(members)), model.shape, asInk);
        layer.drawImage(image, column * tileWidth, row * tileHeight, tileWidth, tileHeight);
      }),
    );
    draw();
  }

  function draw() {
    const ratio = canvas.width / size();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = find("dots").checked ? 0.6 : 1;
    context.drawImage(tiles, 0, 0);
    context.globalAlpha = 1;
    context.scale(ratio, ratio);
    if (find("dots").checked) drawDots();
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 2;
    context.beginPath();
    for (const [from, to] of [line, drag?.line].filter(Boolean)) {
      context.moveTo(...from);
      context.lineTo(...to);
    }
    if (chosen !== null) {
      const [x, y] = place(chosen);
      context.moveTo(x + 7, y);
      context.arc(x, y, 7, 0, 2 * Math.PI);
    }
    if (cursor) {
      const [x, y] = cursor;
      for (const [dx, dy] of [[12, 0], [0, 12]]) {
        context.moveTo(x - dx, y - dy);
        context.lineTo(x + dx, y + dy);
      }
    }
    context.stroke();
  }

  function drawDots() {
    const middles = new Map();
    for (let n = 0; n < count(); n++) {
      const [x, y] = place(n);
      if (x < 0 || y < 0 || x > size() || y > size()) continue;
      const label = labels?.[n];
      context.fillStyle = labels ? colourOf(label) : COLOURS[0];
      context.fillRect(x - 1.25, y - 1.25, 2.5, 2.5);
      if (!middles.has(label)) middles.set(label, []);
      middles.get(label).push([x, y]);
    }
    if (!labels || classes > NAMED) return;
    context.font = "bold 13px system-ui, sans-serif";
    [context.textAlign, context.textBaseline] = ["center", "middle"];
    for (const [label, places] of middles) {
      const [x, y] = [0, 1].map((i) => places.map((p) => p[i]).sort((a, b) => a - b)[places.length >> 1]);
      const name = explored.className(label);
      const half = Math.max(11, context.measureText(name).width / 2 + 6);
      context.fillStyle = colourOf(label);
      context.beginPath();
      context.roundRect(x - half, y - 11, 2 * half, 22, 11);
      context.fill();
      context.fillStyle = "white";
      context.fillText(name, x, y);
    }
  }

  function select(n) {
    [chosen, line] = [n, null];
    draw();
    onSelect(n);
  }

  function zoom(factor, [x, y] = cursor ?? [size() / 2, size() / 2]) {
    const before = toPlane(x, y);
    view.scale *= factor;
    const after = toPlane(x, y);
    [view.x, view.y] = [view.x + before[0] - after[0], view.y + before[1] - after[1]];
    line = null;
    changed();
  }

  function hover(at) {
    find("hover").hidden = !at;
    if (!at) return;
    const n = nearest(...at);
    const [picture, text] = find("hover").children;
    paint(picture, explored.image(n), model.shape);
    const name = labels ? `${explored.className(labels[n])}, ` : "";
    text.textContent = `${name}${explored.array("neg_elbo")[n].toFixed(1)} nats`;
    Object.assign(find("hover").style, { left: `${Math.min(at[0] + 14, size() - 90)}px`, top: `${at[1] + 14}px` });
  }

  const at = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag = { from: nearest(...at(event)), start: at(event), line: null };
    cursor = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    hover(event.pointerType === "touch" && !drag ? null : at(event));
    if (!drag || Math.hypot(at(event)[0] - drag.start[0], at(event)[1] - drag.start[1]) < SAME_PLACE) return;
    drag.line = [place(drag.from), at(event)];
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    const done = drag;
    drag = null;
    if (done?.line) {
      const to = nearest(...at(event));
      chosen = null;
      line = [place(done.from), place(to)];
      draw();
      onPath(done.from, to);
    } else if (done) select(done.from);
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, at(event));
  });
  canvas.addEventListener("keydown", (event) => {
    const keys = { "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), Enter: () => cursor && select(nearest(...cursor)) };
    if (event.key in ARROWS) {
      const from = cursor ?? [size() / 2, size() / 2];
      cursor = ARROWS[event.key].map((step, i) => Math.min(Math.max(from[i] + step, 0), size()));
      hover(cursor);
      draw();
    } else if (event.key in keys) keys[event.key]();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => hover(null));
  find("zoom-in").onclick = () => zoom(1.5);
  find("zoom-out").onclick = () => zoom(1 / 1.5);
  const projection = () => document.querySelector("[name=projection]:checked").value;
  find("zoom-reset").onclick = () => project(projection());
  find("dots").onchange = draw;
  for (const radio of document.querySelectorAll("[name=projection]")) radio.onchange = () => project(radio.value);
  new ResizeObserver(() => size() && project(projection())).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  return changed;
}
