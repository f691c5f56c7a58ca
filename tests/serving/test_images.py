"""Images to score: every form of the same image gives the same pixels, and what is no image of a digit is named."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from vae.data.datasets import load
from vae.errors import DataError
from vae.serving.images import find_images, fit_digit


@pytest.fixture(scope="module")
def digits(bundled):
    """Digits, uint8 [20, 28, 28], of which an image to score is [1, 28, 28]."""
    return load(bundled[0], "test").images[:20].numpy().reshape(-1, 28, 28)


def written(folder, digits, kind):
    """A file or folder with the digits."""
    path = folder / kind
    match kind:
        case "png":
            (path / "below").mkdir(parents=True)
            for number, digit in enumerate(digits):
                Image.fromarray(digit).convert("RGB").save(path / "below" / f"{number:02}.PNG")
            (path / "notes.txt").write_text("no image")
        case "idx" | "idx.gz":
            content = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in digits.shape) + digits.tobytes()
            path.write_bytes(gzip.compress(content) if kind == "idx.gz" else content)
        case "a.npy":
            np.save(path, digits)
        case "flat.npz":
            np.savez(path, images=digits.reshape(-1, 784) / 255)
    return path


@pytest.mark.parametrize("kind", ["png", "idx", "idx.gz", "a.npy", "flat.npz"])
def test_each_form_of_the_same_images_has_the_same_pixels(tmp_path, digits, kind):
    sources = find_images(written(tmp_path, digits, kind))
    np.testing.assert_array_equal([source.read() for source in sources], digits[:, None])
    assert len({source.name for source in sources}) == len(digits)
    assert sources[3].name == ("below/03.PNG" if kind == "png" else f"{kind}[3]")


def test_fitting_a_digit_of_mnist_changes_it_little(digits):
    fitted = np.stack([fit_digit(digit) for digit in digits])
    same = (fitted == digits).all((1, 2))
    assert same.mean() > 0.7  # the others were of another size before their edges were smoothed
    assert abs(fitted.astype(int) - digits).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(300, 60), (60, 300), (17, 17)])
def test_a_fitted_digit_fills_its_box_and_is_centred_by_mass(width, height):
    page = np.full((height + 80, width + 40), 250, np.uint8)  # dark ink on white paper
    page[50 : 50 + height, 10 : 10 + width] = 30
    page[50 : 50 + height // 2, 10 : 10 + width // 2] = 120
    fitted = fit_digit(page)
    ink = fitted > 20
    sizes = np.ptp(np.flatnonzero(ink.any(1))) + 1, np.ptp(np.flatnonzero(ink.any(0))) + 1
    assert max(sizes) == 20 and sizes[0] / sizes[1] == pytest.approx(height / width, rel=0.15)
    mass = fitted / fitted.sum()
    for axis in (0, 1):
        assert np.arange(28) @ mass.sum(1 - axis) == pytest.approx(14, abs=0.51)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["can't be read"]),
        (png(np.zeros((28, 28), np.uint8))[:45], ["can't be read"]),
        (png(np.zeros((30, 28), np.uint8)), ["28×30", "28×28", "FIT=1"]),
    ],
    ids=["empty", "truncated", "too large"],
)
def test_a_picture_that_cannot_be_used_says_why(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    (source,) = find_images(tmp_path)
    with pytest.raises(DataError) as error:
        source.read()
    assert all(word in str(error.value) for word in words)


def test_an_empty_picture_cannot_be_fitted():
    specks = np.zeros((2000, 2000), np.uint8)
    specks[100, 100] = specks[1900, 1900] = 255  # gone when they are scaled to 20×20
    for picture in (np.zeros((40, 40), np.uint8), specks):
        with pytest.raises(DataError, match="nothing in it"):
            fit_digit(picture)


def test_a_digit_on_grey_paper_is_fitted_as_the_same_on_white_paper(digits):
    page = np.pad(np.kron(digits[0], np.ones((8, 8), np.uint8)), 60)
    on_white, on_grey = (fit_digit((paper * (1 - page / 255)).round().astype(np.uint8)) for paper in (255, 190))
    np.testing.assert_allclose(on_grey.astype(int), on_white, atol=3)


def turned_by_its_exif(digit):
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # to be turned clockwise by a quarter
    return Image.fromarray(np.rot90(digit)), {"exif": exif}


def black_ink_on_nothing(digit):
    return Image.merge("LA", [Image.new("L", digit.shape), Image.fromarray(255 - digit)]), {}


def of_16_bit(digit):
    return Image.fromarray(digit * np.uint16(257)), {}


@pytest.mark.parametrize("kind", [turned_by_its_exif, black_ink_on_nothing, of_16_bit])
def test_a_picture_is_read_as_a_viewer_shows_it(tmp_path, digits, kind):
    picture, options = kind(digits[0])
    picture.save(tmp_path / "x.png", **options)
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(source.read(), digits[:1])


@pytest.mark.parametrize(
    ("dtype", "white", "read"),
    [
        (bool, 1, 255),
        (np.int8, 1, 255),
        (np.int64, 1, 255),
        (np.float16, 1, 255),
        (np.uint8, 1, 255),
        (np.int64, 200, 200),
    ],
)
def test_pixels_of_an_array_are_from_0_to_1_unless_one_is_above_1(tmp_path, dtype, white, read):
    np.save(tmp_path / "x.npy", np.full((1, 784), white, dtype))
    (source,) = find_images(tmp_path / "x.npy")
    assert (source.read() == read).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 100)), ["(3, 100)"]),
        (np.zeros((0, 784)), ["no images"]),
        (np.full((1, 784), np.nan), ["nan"]),
        (np.full((1, 784), 300), ["300", "0 to 255"]),
        (np.array([["a"] * 784]), ["<U1"]),
        (np.array([None], dtype=object), ["allow_pickle=False"]),
    ],
)
def test_an_array_without_images_is_refused(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError) as error:
        find_images(tmp_path / "x.npy")
    assert all(word in str(error.value) for word in ["x.npy", *words]), error.value


@pytest.mark.parametrize("name", ["nothing", "text.txt", "broken.npz", "folder"])
def test_a_path_without_images_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for file in ("text.txt", "broken.npz"):
        (tmp_path / file).write_text("no images")
    with pytest.raises(DataError, match=name):
        find_images(tmp_path / name)


COLOURS = (np.random.default_rng(0).random((5, 6, 9, 3)) * 255).astype(np.uint8)  # [N, H, W, C]


@pytest.mark.parametrize(
    "form", [COLOURS, COLOURS / 255, COLOURS.transpose(0, 3, 1, 2), COLOURS.transpose(0, 3, 1, 2).reshape(5, -1)]
)
def test_colour_images_are_read_from_every_form_of_an_array(tmp_path, form):
    np.save(tmp_path / "x.npy", form)
    found = [source.read() for source in find_images(tmp_path / "x.npy", (3, 6, 9))]
    np.testing.assert_array_equal(found, COLOURS.transpose(0, 3, 1, 2))


def test_colour_pictures_must_have_the_models_size_or_are_scaled_to_cover_it(tmp_path):
    Image.fromarray(COLOURS[0]).save(tmp_path / "a.png")
    Image.fromarray(np.kron(COLOURS[1], np.ones((4, 4, 1), np.uint8))).save(tmp_path / "b.webp", lossless=True)
    Image.fromarray(COLOURS[2]).convert("L").save(tmp_path / "c.png")
    same, large, grey = find_images(tmp_path, (3, 6, 9))
    np.testing.assert_array_equal(same.read(), COLOURS[0].transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"it is 36×24, allowed is 9×6 \(FIT=1 fits it\)"):
        large.read()
    assert (np.ptp(grey.read(), axis=0) == 0).all()
    _, fitted, _ = find_images(tmp_path, (3, 6, 9), fit=True)
    np.testing.assert_allclose(fitted.read().astype(int), COLOURS[1].transpose(2, 0, 1), atol=60)  # it is smoothed
