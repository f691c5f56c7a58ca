"""The explorer's page in a real Chromium, opened from a file with the network cut off."""

import json
import re
import shutil
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch.utils.data import DataLoader, TensorDataset

from mlflow_server import Server
from vae.config import PRIOR_NAMES, ModelParams
from vae.models.priors import PRIORS, StandardNormal
from vae.models.vae import VAE, slerp
from vae.serving.explorer.build import save_explorer

CHROMIUM = shutil.which("chromium")
expect.set_options(timeout=60_000)  # of a busy machine
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium, in which the page is tested")

DROP = """([text, name, type]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], name, { type }));
  dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
}"""
ONE = [(0.5, 0.2), (0.5, 0.8)]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page from its file. No page may ask for anything else, or write an error to the console."""
    contexts, trouble, files = [], [], set()

    def open_page(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        files.add(path.as_uri())
        context.route("**", lambda route: route.continue_() if route.request.url in files else route.abort())
        page = context.new_page()
        page.on("request", lambda request: request.url in files or trouble.append(request.url))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def page(opened, explored):
    return opened(explored[2])


def image(page, name):
    """The grey values in [0, 1] of a canvas, in the page or in a frame of it."""
    png = page.locator(f"#{name}").evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(BytesIO(b64decode(png))).convert("L")).flatten() / 255


def same(picture, expected):
    np.testing.assert_allclose(picture, expected.detach().flatten().numpy(), atol=1.5 / 255)


def draw(page, points):
    area = page.locator("#ink")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()
    expect(page.locator("#price")).to_contain_text("costs")


def eventually(page, found, other_than):
    """What `found` returns once it differs: images are decoded between frames."""
    for _ in range(600):
        if (found() != other_than).any():
            return found()
        page.wait_for_timeout(100)
    raise AssertionError("nothing has changed")


def nats(text):
    """The numbers in a price: of all, of the reconstruction, of the KL, and the percentage of costlier test images."""
    found = re.search(r"costs (.*) nats: reconstruction (.*) \+ KL (.*)\. (.*)\s% of the test images cost more", text)
    return [float(number) for number in found.groups()]


def page_noise(count, seed=1):
    """The page's standard normal numbers: Box & Muller on mulberry32."""
    state, numbers = seed, []
    for _ in range(2 * count):
        state = (state + 0x6D2B79F5) % 2**32
        t = (state ^ state >> 15) * (state | 1) % 2**32
        t ^= (t + (t ^ t >> 7) * (t | 61)) % 2**32
        numbers.append((t ^ t >> 14) / 2**32)
    u, v = torch.tensor(numbers, dtype=torch.float64).view(-1, 2).T
    return (torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * torch.pi * v)).float()


def tensors_of(path):
    return load_tensors(b64decode(re.search(r'id="payload"[^>]*>([^<]+)<', path.read_text())[1]))


def chosen_image(page):
    return int(re.match(r"Test image (\d+)", page.locator("#what").inner_text())[1])


def test_a_slider_changes_the_image_and_its_strips(page, explored):
    before = image(page, "image")
    slider = page.locator("#sliders input").first
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    after = image(page, "image")
    assert np.abs(after - before).max() > 0.2
    model = explored[0]
    z = tensors_of(explored[2])["explorer.means"][0].float()
    for row in page.locator("#sliders input").all():
        z[int(row.get_attribute("id")[1:])] = float(row.input_value())
    np.testing.assert_allclose(after, model.images(z).detach().numpy(), atol=0.05)  # the others are in steps, too


def test_a_click_on_the_map_shows_the_reconstruction_and_a_drag_interpolates(page, explored):
    model, means = explored[0], tensors_of(explored[2])["explorer.means"].float()
    area = page.locator("#map")
    area.click(position={"x": 150, "y": 260})
    first = chosen_image(page)
    same(image(page, "image"), model.images(means[first]))
    assert page.locator("#map-status").inner_text().startswith(f"Test image {first}, class ")

    page.get_by_label("spherical").check()
    area.drag_to(area, source_position={"x": 150, "y": 260}, target_position={"x": 420, "y": 300})
    start, end = map(int, re.findall(r"image (\d+)", page.locator("#map-status").inner_text()))
    assert start == first != end
    page.locator("#position").fill("0.7")
    same(image(page, "image"), model.images(slerp(means[start], means[end], torch.tensor([[0.7]]))))
    page.get_by_label("linear").check()
    page.locator("#position").fill("0.3")
    same(image(page, "image"), model.images(torch.lerp(means[start], means[end], 0.3)))


def test_the_map_shows_an_image_under_the_pointer_and_decodes_images_in_the_background(page):
    page.get_by_label("dots").uncheck()
    empty = np.zeros_like(image(page, "map"))
    far = eventually(page, lambda: image(page, "map"), other_than=empty)
    page.get_by_label("Zoom in").click()
    eventually(page, lambda: image(page, "map"), other_than=far)
    page.locator("#map").hover(position={"x": 200, "y": 200})
    assert re.fullmatch(r"\d, \d+\.\d nats", page.locator("#hover span").inner_text())


def test_a_drawn_one_is_reconstructed_as_a_one_and_costs_what_it_costs_in_torch(page, explored):
    model, loader, _ = explored
    draw(page, ONE)
    x = torch.tensor(image(page, "input")).float()
    assert set(x.tolist()) == {0.0, 1.0}
    rows, columns = x.view(28, 28).nonzero().T
    assert rows.max() - rows.min() in (18, 19)  # scaled to 20 pixels; the outermost ones are grey, and may be black
    assert columns.float().mean() == pytest.approx(14, abs=1) and rows.float().mean() == pytest.approx(14, abs=1)
    rebuilt = image(page, "rebuilt")
    same(rebuilt, model.reconstruct(x[None]))
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    by_class = torch.stack([images[labels == digit].flatten(1).mean(0) for digit in range(10)])
    assert (by_class - torch.tensor(rebuilt)).square().sum(1).argmin() == 1

    terms = model(x[None], page_noise(16 * model.noise_dim).view(1, 16, -1))
    expected = [terms.nll.mean().item(), terms.kl.sum().item()]
    price, *parts, percent = nats(page.locator("#price").inner_text())
    assert [price, *parts] == pytest.approx([sum(expected), *expected], abs=0.06)
    share = (tensors_of(explored[2])["explorer.neg_elbo"] > sum(expected)).float().mean()
    assert percent == pytest.approx(100 * share, abs=1)

    page.get_by_role("button", name="Take its latents").click()
    same(image(page, "image"), model.images(model.encode(x[None]).mu))
    labels = [button.get_attribute("aria-label") for button in page.locator("#nearest button").all()]
    assert [label[-1] for label in labels].count("1") >= 6
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#price")).to_contain_text("Nothing is drawn")


def test_the_buttons_draw_from_the_prior_and_calculate_with_the_means_of_classes(page, explored):
    model, arrays = explored[0], tensors_of(explored[2])
    pictures = []
    for _ in range(3):
        page.get_by_role("button", name="Draw from the prior").click()
        pictures.append(image(page, "image"))
    assert np.abs(np.diff(pictures, axis=0)).max(1).min() > 0.3
    means = [arrays["explorer.means"][arrays["explorer.labels"] == digit].float().mean(0) for digit in range(10)]
    page.get_by_role("button", name="Calculate").click()
    same(image(page, "image"), model.images(means[8] - means[3] + means[1]))
    page.get_by_label("Mean of class").select_option("4")
    same(image(page, "image"), model.images(means[4]))


@pytest.fixture(scope="module", params=["classes", "no labels"])
def colourful(request, tmp_path_factory):
    """A model of colour images with odd sides, 12 named classes or none, and a logistic likelihood; and its page."""
    likelihood = {"likelihood": "discretized_logistic", "likelihood_components": 2, "prior": "standard"}
    params = ModelParams(architecture="conv", hidden_dims=(4, 6), latent_dim=3, **likelihood)
    model = VAE.from_params(params, 0, image_shape=(3, 9, 14)).eval()
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    images = (torch.rand(60, 3, 9, 14, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    data = TensorDataset(images, torch.arange(60) % 12) if request.param == "classes" else TensorDataset(images)
    path = tmp_path_factory.mktemp("colour") / "index.html"
    names = [f"Käfer {number}" for number in range(12)]
    save_explorer(model, DataLoader(data, 20), path, binarization="none", classes=names)
    return model, images, path, request.param == "classes"


def colours(page, name):
    """The values in [0, 1] of a canvas in colour, [1, 3, height, width]."""
    png = page.locator(f"#{name}").evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    return torch.tensor(np.asarray(Image.open(BytesIO(b64decode(png))).convert("RGB"))).permute(2, 0, 1)[None] / 255


def test_colour_images_of_any_shape_are_shown_and_priced_from_a_file(opened, colourful, tmp_path):
    model, images, path, labelled = colourful
    page = opened(path)
    with torch.no_grad():
        mu = model.encode(images).mu
        same(colours(page, "image").flatten(), model.images(mu[0].half().float()))
        page.locator("#map").click(position={"x": 150, "y": 260})
        chosen = chosen_image(page)
        same(colours(page, "image").flatten(), model.images(mu[chosen].half().float()))
        name = f"Test image {chosen}, class Käfer {chosen % 12}" if labelled else f"Test image {chosen}"
        assert page.locator("#what").inner_text() == name
        pixels = (255 * images[7]).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "seven.png")
        page.locator("#picture").set_input_files(tmp_path / "seven.png")
        expect(page.locator("#price")).to_contain_text("costs")
        assert torch.equal(colours(page, "input"), images[7:8])
        same(colours(page, "rebuilt").flatten(), model.reconstruct(images[7:8]))
        terms = model(images[7:8].flatten(1), page_noise(16 * model.noise_dim).view(1, 16, -1))
        expected = [terms.nll.mean().item(), terms.kl.sum().item()]
    assert nats(page.locator("#price").inner_text())[:3] == pytest.approx([sum(expected), *expected], abs=0.06)
    assert page.locator("#nearest button").first.get_attribute("aria-label").startswith("Test image 7")


def test_class_tools_and_a_drawing_area_are_there_only_where_they_make_sense(opened, colourful, explored):
    page = opened(colourful[2])
    expect(page.locator("#ink")).to_be_hidden()
    expect(page.locator("#classes")).to_be_visible(visible=colourful[3])
    page.locator("#map").hover(position={"x": 200, "y": 200})
    expected = r"Käfer \d+, \d+\.\d nats" if colourful[3] else r"\d+\.\d nats"
    assert re.fullmatch(expected, page.locator("#hover span").inner_text())
    page.get_by_role("button", name="Calculate").click() if colourful[3] else None
    page.evaluate(DROP, ["no picture", "x.png", "image/png"])
    expect(page.locator("#notice")).to_have_text("x.png can't be read as a picture.")
    page.evaluate(DROP, [explored[2].read_text(), "digits.html"])
    expect(page.locator("#notice")).to_have_text("digits.html can't be compared. Its images have another shape.")
    other = opened(explored[2])
    expect(other.locator("#ink")).to_be_visible()
    expect(other.locator("#picture")).to_be_hidden()


@pytest.mark.parametrize("kind", ["page", "weights"])
def test_a_second_model_is_shown_beside_the_first(page, explored, tmp_path, kind):
    conv = ModelParams(architecture="conv", hidden_dims=(4, 6), latent_dim=3, prior="standard", lower_latent_dims=(2,))
    other = VAE.from_params(conv, 1).eval()
    other.load_state_dict({name: tensor.half().float() for name, tensor in other.state_dict().items()})
    path = tmp_path / {"page": "other.html", "weights": "other.safetensors"}[kind]
    if kind == "page":
        save_explorer(other, explored[1], path, num_samples=200)
    else:
        other.save(path)
    draw(page, ONE)
    page.locator("#file").set_input_files(path)
    table = page.locator("#comparison table")
    assert "prior realnvp" in table.inner_text() and "conv 4-6, 3+2 latents" in table.inner_text()
    assert ("not in the file" in table.inner_text()) == (kind == "weights")
    x = torch.tensor(image(page, "input")).float()
    terms = other(x[None], page_noise(16 * other.noise_dim).view(1, 16, -1))
    price = float(table.locator("tr").last.locator("td").last.inner_text().split()[0])
    assert price == pytest.approx((terms.nll.mean() + terms.kl.sum()).item(), abs=0.06)


@pytest.fixture(scope="module")
def conditional(explored, tmp_path_factory):
    """A conditional model whose images depend on the class, and its page."""
    params = ModelParams(hidden_dims=(32,), latent_dim=4, prior="standard", conditional=True)
    model = VAE.from_params(params, 2, classes=10).eval()
    model.encoder.head.weight.data *= 8  # so that latents are active
    model.label_images.data = 0.3 * torch.randn(model.label_images.shape, generator=torch.Generator().manual_seed(0))
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    path = tmp_path_factory.mktemp("conditional") / "index.html"
    save_explorer(model, explored[1], path, num_samples=200, classes=[f"digit {label}" for label in range(10)])
    return model, path


@torch.no_grad()
def test_the_page_of_a_conditional_model_decodes_and_prices_as_the_chosen_class(opened, conditional):
    model, path = conditional
    arrays = tensors_of(path)
    means, labels = arrays["explorer.means"].float(), arrays["explorer.labels"].tolist()
    page = opened(path)
    choice = page.get_by_role("combobox", name="Class", exact=True)
    same(image(page, "image"), model.images(means[0], labels[0]))
    assert choice.input_value() == str(labels[0])

    page.wait_for_function("document.querySelector('#sliders .strip').width == 9 * 28")
    strip = image(page, "sliders .strip >> nth=0")
    choice.select_option("digit 4")
    assert page.locator("#what").inner_text() == f"Test image 0, class digit {labels[0]}, decoded as class digit 4"
    same(image(page, "image"), model.images(means[0], 4))
    line = model.interpolate(means[0], means[1], 11, labels=4).view(11, 28, 28)
    same(image(page, "path"), torch.cat(list(line), 1))
    strip = eventually(page, lambda: image(page, "sliders .strip >> nth=0"), other_than=strip)
    z = means[0].repeat(9, 1)
    slider = page.locator("#sliders input").first
    low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
    z[:, int(slider.get_attribute("id")[1:])] = torch.linspace(low, high, 9)
    same(strip, torch.cat(list(model.images(z, 4).view(9, 28, 28)), 1))

    draw(page, ONE)
    x, noise = torch.tensor(image(page, "input")).float(), page_noise(16 * model.noise_dim).view(1, 16, -1)
    for label in (4, 7):
        choice.select_option(str(label))
        terms = model(x[None], noise, labels=label)
        expected = [terms.nll.mean().item(), terms.kl.sum().item()]
        text = page.locator("#price").inner_text()
        assert text.startswith(f"As class digit {label}, your image costs ")
        assert nats(text)[:3] == pytest.approx([sum(expected), *expected], abs=0.06)
        same(image(page, "rebuilt"), model.reconstruct(x[None], label))

    before = image(page, "map")
    page.locator("#map").click(position={"x": 150, "y": 260})
    chosen = chosen_image(page)
    assert choice.input_value() == str(labels[chosen])
    same(image(page, "image"), model.images(means[chosen], labels[chosen]))
    eventually(page, lambda: image(page, "map"), other_than=before)


def test_a_conditional_model_is_compared_with_one_of_its_classes_or_without(opened, conditional, explored, tmp_path):
    model, path = conditional
    page = opened(path)
    page.get_by_role("combobox", name="Class", exact=True).select_option("3")
    page.locator("#file").set_input_files(explored[2])
    table = page.locator("#comparison table")
    expect(table).to_contain_text("p(x), which can't be compared with p(x | class)")
    model.save(tmp_path / "same.safetensors")
    page.locator("#file").set_input_files(tmp_path / "same.safetensors")
    expect(table).not_to_contain_text("can't be compared")
    shown = [page.locator("#comparison canvas").nth(index) for index in (0, 1)]
    assert shown[0].evaluate("canvas => canvas.toDataURL()") == shown[1].evaluate("canvas => canvas.toDataURL()")
    other = VAE(hidden_dims=(4,), latent_dim=2, prior="standard", conditional=True, classes=3)
    other.save(tmp_path / "three.safetensors")
    page.locator("#file").set_input_files(tmp_path / "three.safetensors")
    expect(page.locator("#notice")).to_contain_text("It is conditional on 3 classes, and this model on 10.")
    page = opened(explored[2])
    expect(page.locator("#class")).to_be_hidden()
    page.locator("#file").set_input_files(path)
    expect(page.locator("#notice")).to_contain_text("It is conditional, and this model is not: open its own page")


def test_a_model_with_a_prior_of_ones_own_has_a_page_that_says_that_it_cannot_compute_it(
    opened, explored, tmp_path, monkeypatch
):
    monkeypatch.setitem(PRIORS, "mine", StandardNormal)
    PRIOR_NAMES.append("mine")
    try:
        model = VAE(hidden_dims=(4,), latent_dim=2, prior="mine")
    finally:
        PRIOR_NAMES.remove("mine")
    save_explorer(model, explored[1], tmp_path / "mine.html", num_samples=50)
    page = opened(tmp_path / "mine.html")
    expect(page.locator("#notice")).to_contain_text("it has no prior “mine”")
    expect(page.locator("main")).to_be_hidden()


def unknown_prior(path):
    content = {"prior.x": torch.zeros(2)}
    model = VAE(hidden_dims=(4,), prior="standard")
    config = model.params.model_dump(mode="json") | {"prior": "mine"}
    path.write_bytes(save(content | model.state_dict(), {"vae": json.dumps(config)}))


def other_shapes(path):
    config = VAE(hidden_dims=(4,), prior="standard").params.model_dump(mode="json")
    path.write_bytes(save(VAE(hidden_dims=(5,), prior="standard").state_dict(), {"vae": json.dumps(config)}))


FOREIGN = {
    "text": (lambda path: path.write_text("hello"), "damaged, or neither"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or neither"),
    "html": (lambda path: path.write_text("<!doctype html><p>hello</p>"), "not a complete explorer page"),
    "header": (lambda path: path.write_bytes(b"\xff" * 64), "damaged, or neither"),
    "no model": (lambda path: path.write_bytes(save({"a": torch.zeros(2)})), "not a model of this project"),
    "a custom prior": (unknown_prior, "no prior “mine”"),
    "other shapes": (other_shapes, "doesn't match its own configuration"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_ends_in_a_sentence(page, tmp_path, kind):
    write, words = FOREIGN[kind]
    write(tmp_path / "file.html")
    page.locator("#file").set_input_files(tmp_path / "file.html")
    expect(page.locator("#notice")).to_contain_text("file.html can't be compared. ")
    expect(page.locator("#notice")).to_contain_text(words)
    draw(page, ONE)


def test_a_page_can_be_dropped_and_a_truncated_one_ends_in_a_sentence(page, explored):
    whole = explored[2].read_text()
    page.evaluate(DROP, [whole[: len(whole) // 2], "half.html"])
    expect(page.locator("#notice")).to_contain_text("not a complete explorer page")
    page.evaluate(DROP, [whole, "whole.html"])
    expect(page.locator("#comparison table")).to_contain_text("whole.html")
    assert page.locator("#notice").inner_text() == ""


def test_the_page_can_be_used_with_the_keyboard_alone(page, explored):
    """Tab goes through everything that takes part; each is used with keys."""
    used, means = [], tensors_of(explored[2])["explorer.means"].float()
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        used.append(name)
        if name == "map":
            for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "+", "Enter"):
                page.keyboard.press(key)
            same(
                image(page, "image"),
                explored[0].images(means[chosen_image(page)]),
            )
        if name == "prior":
            page.keyboard.press("Enter")
            assert page.locator("#what").inner_text() == "A sample from the prior"
        if re.fullmatch(r"z\d+", name):
            page.keyboard.press("ArrowLeft")
            assert page.locator("#what").inner_text() == "Moved by hand"
        if name == "ink":
            for key in (" ", *["ArrowDown"] * 14, " "):
                page.keyboard.press(key)
            expect(page.locator("#price")).to_contain_text("costs")
        if name == "file":
            break
    for name in ("map", "path-start", "path-end", "position", "prior", "mean", "calculate", "ink", "clear", "explore"):
        assert name in used, name


@pytest.mark.parametrize("kind", ["explored", "conditional"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_and_nothing_is_wider_than_a_phone(opened, explored, tmp_path, scheme, kind, request):
    page = opened(request.getfixturevalue(kind)[-1], color_scheme=scheme, viewport={"width": 380, "height": 800})
    before = Axe().run(page)
    assert before.violations_count == 0, before.generate_report()
    explored[0].save(tmp_path / "a-model-with-a-rather-long-name-of-its-own.safetensors")
    draw(page, ONE)
    page.locator("#file").set_input_files(tmp_path / "a-model-with-a-rather-long-name-of-its-own.safetensors")
    page.locator("summary").click()
    page.locator("#comparison table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.slow
def test_it_works_in_the_artifact_tab_of_an_mlflow_server(browser, explored, empty_store, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    with Server(tmp_path, empty_store) as server:
        client = MlflowClient(server.url)
        run = client.create_run(client.create_experiment("explorer")).info
        client.log_artifact(run.run_id, str(explored[2]), "explorer")
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        path = f"experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/explorer/index.html"
        page.goto(f"{server.url}/#/{path}")
        page.locator("iframe").wait_for(timeout=120_000)
        assert page.locator("iframe").get_attribute("sandbox") == "allow-scripts"
        frame = page.frame_locator("iframe")
        frame.get_by_role("button", name="Draw from the prior").click(timeout=60_000)
        assert frame.locator("#what").inner_text() == "A sample from the prior"
        assert image(frame, "image").max() > 0.4
        page.close()
