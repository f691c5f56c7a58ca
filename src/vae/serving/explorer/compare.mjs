// A second model, from a file that is dropped on the page or chosen.

import { priceOf } from "./drawing.mjs";
import { Explored } from "./explored.mjs";
import { element, find, picture } from "./pictures.mjs";
import { FileError } from "./weights.mjs";

/** What a model is, in one line. */
export function describeModel({ model: { config, classes }, parameters }) {
  const widths = config.hidden_dims.join("-");
  const lower = config.lower_latent_dims.map((dim) => `+${dim}`).join("");
  const label = classes ? `, conditional on ${classes} classes${config.conditional_prior ? ", a prior for each" : ""}` : "";
  const size = `${(parameters / 1e6).toFixed(2)} M parameters`;
  return `${config.architecture} ${widths}, ${config.latent_dim}${lower} latents, prior ${config.prior}${label}, ${size}`;
}

/** The other model must know each class that the page lets choose; one that is not conditional ignores it. */
function checkClasses(others, own) {
  if (!others || others === own) return;
  if (own) throw new FileError(`It is conditional on ${others} classes, and this model on ${own}.`);
  throw new FileError("It is conditional, and this model is not: open its own page, and drop this model there.");
}

/** Returns a function that shows both models on latents and an input: (z, noise, x). */
export function makeComparison(explored) {
  let [other, name, current] = [null, "", null];

  async function read(file) {
    find("notice").textContent = "";
    try {
      const read = new Explored(new Uint8Array(await file.arrayBuffer()));
      if (`${read.model.shape}` !== `${explored.model.shape}`) throw new FileError("Its images have another shape.");
      checkClasses(read.model.classes, explored.model.classes);
      other = read;
      name = file.name;
      update();
      find("comparison").hidden = false;
      find("comparison").scrollIntoView({ block: "nearest" });
    } catch (error) {
      other = null;
      find("comparison").hidden = true;
      const reason = error instanceof FileError ? error.message : "The file is damaged.";
      find("notice").textContent = `${file.name} can't be compared. ${reason}`;
      find("notice").scrollIntoView({ block: "nearest" });
    }
  }

  function update() {
    if (!other) return;
    other.model.label = explored.model.label;
    const both = [explored, other];
    const { z, noise, x } = current;
    const image = explored.model.images(z, 1, noise);
    const L = other.model.latentDim;
    const metric = (key) => ({ metrics }) => (key in metrics ? Math.abs(metrics[key]).toFixed(2) : "not in the file");
    const protocol = ({ metrics }) =>
      ["dataset", "binarization", "importance_samples"].map((key) => metrics[key]).filter(Boolean).join(", ");
    const density = ({ model }) => (model.classes ? "p(x | class)" : "p(x), which can't be compared with p(x | class)");
    const shown = (values) => picture(values, explored.model.shape);
    const rebuilt = (input) => ({ model }) => shown(model.reconstruct(input));
    const price = ({ model }) => {
      const { reconstruction, kl } = priceOf(model, x);
      return `${(reconstruction + kl).toFixed(1)} = ${reconstruction.toFixed(1)} + KL ${kl.toFixed(1)}`;
    };
    const rows = [
      ["model", both.map(describeModel)],
      ["test NLL, nats per image", both.map(metric("nll"))],
      ["test −ELBO", both.map(metric("elbo"))],
      ["KL", both.map(metric("kl"))],
      ["protocol", both.map(protocol)],
      ...(explored.model.classes ? [["the nats are of", both.map(density)]] : []),
      ["the sliders' latents, decoded", [shown(image), L === z.length ? shown(other.model.images(z)) : `has ${L} latents`]],
      ["that image, encoded and decoded", both.map(rebuilt(image))],
    ];
    if (x) {
      rows.push(["your image, encoded and decoded", both.map(rebuilt(x))]);
      rows.push(["its price, in nats", both.map(price)]);
    }
    const heads = ["this model", name].map((text) => element("th", { scope: "col" }, text));
    const lines = rows.map(([title, cells]) =>
      element("tr", {}, element("th", { scope: "row" }, title), ...cells.map((cell) => element("td", {}, cell))),
    );
    find("comparison").replaceChildren(element("table", {}, element("tr", {}, element("td"), ...heads), ...lines));
  }

  find("file").onchange = (event) => event.target.files[0] && read(event.target.files[0]);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const { files } = event.dataTransfer;
    const isPicture = files[0]?.type.startsWith("image/") && !find("picture-label").hidden;
    const input = find(isPicture ? "picture" : "file");
    input.files = files;
    input.dispatchEvent(new Event("change"));
  });
  return (state) => {
    current = state;
    update();
  };
}
