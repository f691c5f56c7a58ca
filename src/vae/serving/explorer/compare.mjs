// A second model, from a file that is dropped on the page or chosen.

import { priceOf } from "./drawing.mjs";
import { Explored } from "./explored.mjs";
import { element, find, picture } from "./pictures.mjs";
import { FileError } from "./weights.mjs";

/** What a model is, in one line. */
export function describeModel({ model: { config }, parameters }) {
  const widths = config.hidden_dims.join("-");
  const lower = config.lower_latent_dims.map((dim) => `+${dim}`).join("");
  return `${config.architecture} ${widths}, ${config.latent_dim}${lower} latents, prior ${config.prior}, ${(parameters / 1e6).toFixed(2)} M parameters`;
}

/** Returns a function that shows both models on latents and a drawn input: (z, noise, x). */
export function makeComparison(explored) {
  let [other, name, current] = [null, "", null];

  async function read(file) {
    find("notice").textContent = "";
    try {
      other = new Explored(new Uint8Array(await file.arrayBuffer()));
      name = file.name;
      update();
      find("comparison").hidden = false;
      find("comparison").scrollIntoView({ block: "nearest" });
    } catch (error) {
      const reason = error instanceof FileError ? error.message : "The file is damaged.";
      find("notice").textContent = `${file.name} can't be compared. ${reason}`;
      find("notice").scrollIntoView({ block: "nearest" });
    }
  }

  function update() {
    if (!other) return;
    const both = [explored, other];
    const { z, noise, x } = current;
    const image = explored.model.images(z, 1, noise);
    const metric = (key) => both.map(({ metrics }) => (key in metrics ? Math.abs(metrics[key]).toFixed(2) : "not in the file"));
    const sameSize = other.model.latentDim === z.length;
    const rows = [
      ["model", both.map(describeModel)],
      ["test NLL, nats per image", metric("nll")],
      ["test −ELBO", metric("elbo")],
      ["KL", metric("kl")],
      ["the sliders' latents, decoded", [picture(image), sameSize ? picture(other.model.images(z)) : `has ${other.model.latentDim} latents`]],
      ["that digit, encoded and decoded", both.map(({ model }) => picture(model.reconstruct(image)))],
    ];
    if (x) {
      const prices = both.map(({ model }) => priceOf(model, x));
      rows.push(["your drawing, reconstructed", both.map(({ model }) => picture(model.reconstruct(x)))]);
      rows.push(["its price, in nats", prices.map(({ reconstruction: r, kl }) => `${(r + kl).toFixed(1)} = ${r.toFixed(1)} + KL ${kl.toFixed(1)}`)]);
    }
    const head = element("tr", {}, element("td"), ...["this model", name].map((text) => element("th", { scope: "col" }, text)));
    const lines = rows.map(([title, cells]) =>
      element("tr", {}, element("th", { scope: "row" }, title), ...cells.map((cell) => element("td", {}, cell))),
    );
    find("comparison").replaceChildren(element("table", {}, head, ...lines));
  }

  find("file").onchange = (event) => event.target.files[0] && read(event.target.files[0]);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
  });
  return (state) => {
    current = state;
    update();
  };
}
