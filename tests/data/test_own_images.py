"""Images of your own: folders of pictures of all kinds, arrays and IDX files, and what is refused."""

import gzip
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from vae.config import DataParams
from vae.data import preparation
from vae.data.datasets import FILES, load, split_validation, stratified_order
from vae.data.download import idx_bytes
from vae.errors import ConfigError, DataError
from vae.workflow.stages import fetch_dataset, read_dataset

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(number=0, size=(4, 6), mode="RGB"):
    """A picture of one colour, which tells its number; `size` is height and width."""
    return Image.new(mode, size[::-1], (number % 256, number // 256, 7) if mode == "RGB" else number)


def save(folder, count=10, start=0, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        picture(number, **options).save(folder / f"{number}.png")


@pytest.fixture
def fetch(tmp_path):
    """Runs the download stage on a folder or file; data/raw and data/dataset.json are in tmp_path."""

    def run(path=None, **params):
        params = ({"source": "folder", "path": str(path)} if path else {}) | {"binarization": "none"} | params
        record = fetch_dataset(DataParams(**params), tmp_path / "raw", tmp_path / "dataset.json")
        assert read_dataset(tmp_path / "dataset.json") == record
        return record

    return run


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def own(tmp_path):
    """The folder of a test's pictures."""
    return tmp_path / "own"


def files(raw):
    return {path.name: path.read_bytes() for path in raw.iterdir()} if raw.exists() else {}


def refused(fetch, raw, *arguments, **params):
    """The one line that says why; nothing is written."""
    before = files(raw)
    with pytest.raises((DataError, ConfigError)) as caught:
        fetch(*arguments, **params)
    assert files(raw) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def numbers(split, channels=3):
    """The numbers of pictures in a split."""
    pixels = split.images.view(len(split), channels, -1)
    assert (pixels == pixels[..., :1]).all()
    return (pixels[:, 0, 0].long() + (256 * pixels[:, 1, 0].long() if channels == 3 else 0)).tolist()


def only_image(raw, record):
    """Height × width × channels of the one training image that is not plain."""
    images = load(raw, "train").images.view(-1, *record["image_shape"])
    (odd,) = [image for image in images if len(image.flatten(1).unique(dim=1).T) > 1]
    return odd.permute(1, 2, 0)


# Layouts


def test_folders_are_classes_and_a_fifth_of_each_is_for_testing(own, raw, fetch, monkeypatch):
    monkeypatch.setattr(preparation, "AT_A_TIME", 7)
    for name, count, start in (("Vögel", 50, 0), ("cats", 20, 300), ("犬", 5, 400)):
        save(own / name, count, start)
    (own / "Vögel/deeper").mkdir()
    (own / "Vögel/0.png").rename(own / "Vögel/deeper/0.png")
    record = fetch(own)
    assert record["classes"] == ["Vögel", "cats", "犬"]
    assert (record["name"], record["image_shape"], record["counts"]) == ("own", [3, 4, 6], {"train": 60, "test": 15})
    train, test = (load(raw, part) for part in ("train", "test"))
    assert sorted(numbers(train) + numbers(test)) == [*range(50), *range(300, 320), *range(400, 405)]
    for split in (train, test):
        assert split.labels.tolist() == [(number >= 300) + (number >= 400) for number in numbers(split)]
    assert test.labels.bincount().tolist() == [10, 4, 1]
    assert numbers(test)[:10] != sorted(numbers(test)[:10])


def test_training_and_validation_images_are_disjoint_stratified_and_not_copied(own, raw, fetch):
    for name, count, start in (("a", 100, 0), ("b", 50, 100)):
        save(own / name, count, start)
    train = fetch(own) and load(raw, "train")
    training, validation = split_validation(train, 0.25)
    assert sorted(numbers(training) + numbers(validation)) == sorted(numbers(train))
    assert validation.labels.bincount().tolist() == [20, 10]
    assert training.images.data_ptr() == train.images.data_ptr()
    with pytest.raises(ConfigError, match=r"data\.validation_size is 120, of 120 training images"):
        split_validation(train, 120)


def test_any_range_of_the_order_is_a_stratified_sample():
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.6, 0.3, 0.099, 0.001])
    order = stratified_order(labels)
    assert sorted(order) == list(range(1000))
    for start, stop in [(0, 100), (250, 650), (990, 1000)]:
        expected = np.bincount(labels) * (stop - start) / 1000
        assert np.abs(np.bincount(labels[order[start:stop]], minlength=4) - expected).max() <= 1
    assert np.array_equal(order, stratified_order(labels))


def test_train_and_test_folders_are_kept_and_others_beside_them_left_out(own, raw, fetch, capsys):
    save(own / "train/a", 6)
    save(own / "train/b", 4, start=10)
    save(own / "test/b", 3, start=20)
    save(own / "val/b", 2, start=30)
    record = fetch(own)
    assert (record["counts"], record["classes"]) == ({"train": 10, "test": 3}, ["a", "b"])
    assert sorted(numbers(load(raw, "test"))) == [20, 21, 22]
    assert load(raw, "test").labels.tolist() == [1, 1, 1]
    assert "left out: 2 other files, such as val/b/30.png\n" in capsys.readouterr().out
    (own / "val/b/31.png").unlink()
    fetch(own)
    assert "left out: val/b/30.png\n" in capsys.readouterr().out


def test_images_without_classes_have_no_labels(own, raw, fetch):
    save(own, 20)
    record = fetch(own)
    assert (record["classes"], record["counts"]) == ([], {"train": 16, "test": 4})
    train = load(raw, "train")
    assert train.labels is None
    training, validation = split_validation(train, 4)
    assert (training.labels, validation.labels, len(training), len(validation)) == (None, None, 12, 4)
    assert sorted(numbers(train) + numbers(load(raw, "test"))) == list(range(20))
    assert set(record["sha256"]) == {"train-images", "test-images"}


def test_one_class_and_a_class_with_one_image_are_fine(own, raw, fetch):
    save(own / "only", 10)
    assert fetch(own)["classes"] == ["only"]
    assert load(raw, "train").labels.tolist() == [0] * 8
    save(own / "rare", 1)
    fetch(own)
    assert load(raw, "train").labels.bincount().tolist() == [7, 1]


def test_links_are_followed_a_circle_once_and_hidden_files_ignored(own, raw, fetch, tmp_path):
    save(tmp_path / "elsewhere", 5)
    save(own / "a", 5, start=10)
    (own / "b").symlink_to(tmp_path / "elsewhere")
    (own / "a/linked.png").symlink_to(tmp_path / "elsewhere/4.png")
    (own / "a/circle").symlink_to(own)
    (own / ".git").mkdir()
    (own / "a/.hidden.png").write_bytes(b"no picture")
    assert fetch(own)["classes"] == ["a", "b"]
    assert sorted(numbers(load(raw, "train")) + numbers(load(raw, "test"))) == [0, 1, 2, 3, 4, 4, 10, 11, 12, 13, 14]


def test_the_same_pictures_give_the_same_bytes_and_a_changed_one_others(own, raw, fetch):
    save(own / "a", 10)
    record = fetch(own)
    before = files(raw)
    for path in [*own.rglob("*.png")][::-1]:  # written in another order
        path.write_bytes(path.rename(path.with_suffix(".old")).read_bytes())
        path.with_suffix(".old").unlink()
    assert fetch(own) == record
    assert files(raw) == before
    picture(77).save(own / "a/0.png")
    assert fetch(own)["sha256"]["train-labels"] == record["sha256"]["train-labels"]
    assert files(raw) != before


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda own: None, "which is not there"),
        (lambda own: own.mkdir(), "has no pictures: put some there, or set data.path"),
        (
            lambda own: (save(own / "a"), (own / "empty").mkdir(), (own / "leer").mkdir()),
            "remove their folders: empty, leer",
        ),
        (lambda own: (save(own / "a"), save(own, 1)), "others, such as 0.png, in none"),
        (lambda own: (save(own / "train/a"), save(own / "test")), "in none"),
        (lambda own: save(own, 5), "5 images are too few"),  # one of them for the test
        (lambda own: (save(own, 9), save(own, 1, 9, size=(5, 6))), "2 sizes, such as 4×6 (0.png), 5×6 (9.png)"),
    ],
)
def test_what_is_not_clear_is_refused(own, raw, fetch, make, problem):
    make(own)
    assert problem in refused(fetch, raw, own)


# Pictures of all kinds


def with_orientation(path):
    image = Image.new("RGB", (6, 4), BLUE)  # a viewer shows it 6 high and 4 wide, its top red
    image.paste(RED, (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))


def halves(first, second, mode="RGB", size=(4, 6)):
    """A picture of size width × height, its upper and lower halves in two colours."""
    image = Image.new(mode, size, second)
    image.paste(first, (0, 0, size[0], size[1] // 2))
    return image


def palette():
    image = halves(0, 1, "P")
    image.putpalette([*RED, *BLUE])
    return image


def sixteen_bit(order="<"):
    pixels = np.zeros((6, 4), f"{order}u2")
    pixels[:3], pixels[3:] = 65535, 0x8000
    return Image.fromarray(pixels)


def deep_colour(path):
    """Red and blue of 16 bit a channel, which Pillow reads but doesn't write."""
    rows = [[65535, 0, 0] * 4] * 3 + [[0, 0, 65535] * 4] * 3
    write_png(
        path, struct.pack(">IIBBBBB", 4, 6, 16, 2, 0, 0, 0), b"".join(b"\0" + struct.pack(">12H", *r) for r in rows)
    )


def write_png(path, header, pixels):
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(pixels), b"IEND"]
    content = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def two_frames(path):
    options = {"lossless": True} if path.suffix == ".webp" else {}
    halves(RED, BLUE).save(path, save_all=True, append_images=[halves(GREEN, GREEN)], **options)


KINDS = {
    "plain.png": (halves(RED, BLUE), (RED, BLUE)),
    "cmyk.jpg": (halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), (RED, BLUE)),
    "palette.png": (palette(), (RED, BLUE)),
    "palette.gif": (palette(), (RED, BLUE)),
    "animated.gif": (two_frames, (RED, BLUE)),
    "animated.webp": (two_frames, (RED, BLUE)),
    "turned.jpg": (with_orientation, (RED, BLUE)),
    "turned.png": (with_orientation, (RED, BLUE)),
    "turned.tif": (with_orientation, (RED, BLUE)),
    "animated.png": (two_frames, (RED, BLUE)),
    "pages.tif": (two_frames, (RED, BLUE)),
    "see-through.png": (halves((255, 0, 0, 255), (0, 0, 0, 0), "RGBA"), (RED, (255,) * 3)),
    "grey.jpg": (halves(200, 10, "L"), ((200,), (10,))),
    "grey-alpha.png": (halves((200, 255), (0, 0), "LA"), ((200,), (255,))),
    "one-bit.png": (halves(1, 0, "1"), ((255,), (0,))),
    "deep.png": (sixteen_bit(), ((255,), (128,))),
    "deep.tif": (sixteen_bit(">"), ((255,), (128,))),
    "deep-colour.png": (deep_colour, (RED, BLUE)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_any_kind_has_the_colours_that_a_viewer_shows(own, raw, fetch, name):
    made, colours = KINDS[name]
    own.mkdir()
    for number in range(10):
        made(own / f"{number}{name}") if callable(made) else made.save(own / f"{number}{name}", quality=100)
    record = fetch(own)
    assert record["image_shape"] == [len(colours[0]), 6, 4]
    image = load(raw, "train").images[0].view(-1, 6, 4).int()
    for row, colour in ((0, colours[0]), (5, colours[1])):
        expected = torch.tensor(colour)[:, None].expand(-1, 4)
        assert (image[:, row] - expected).abs().max() <= 3  # JPEG and WebP


def test_a_picture_is_scaled_to_cover_the_size_and_its_middle_kept(own, raw, fetch):
    own.mkdir()
    for number in range(5):
        image = Image.new("RGB", (40, 20), RED)
        image.paste(GREEN, (10, 0, 30, 20))  # the middle
        image.save(own / f"{number}.png")
    Image.new("RGB", (1, 1), GREEN).save(own / "tiny.png")
    Image.new("RGB", (3000, 3001), GREEN).save(own / "huge.png")
    assert fetch(own, image_size=10)["image_shape"] == [3, 10, 10]
    middle = load(raw, "train").images.view(-1, 3, 10, 10).int() - torch.tensor(GREEN).view(3, 1, 1)
    assert middle[..., 3:7].abs().max() == 0 and middle.abs().max() < 100  # pixels beside the middle weigh in
    assert fetch(own, image_size=[10, 20])["image_shape"] == [3, 10, 20]
    edges = load(raw, "train").images.view(-1, 3, 10, 20)[..., [0, -1]]
    assert {tuple(edge.tolist()) for edge in edges.permute(0, 2, 3, 1).reshape(-1, 3)} == {RED, GREEN}


@pytest.mark.parametrize("channels, expected", [("auto", 3), (1, 1), (3, 3)])
def test_grey_and_colour_together_are_one_of_both(own, raw, fetch, channels, expected):
    save(own, 9, mode="L")
    picture(0).save(own / "colour.png")
    assert fetch(own, channels=channels)["image_shape"] == [expected, 4, 6]
    images = load(raw, "train").images.view(-1, expected, 24)
    grey = images[(images == images[:, :1, :1]).all(2).all(1)]
    assert len(grey) >= 7 and set(grey.unique().tolist()) <= set(range(9))


def test_binarized_colour_is_refused(own, raw, fetch):
    save(own)
    message = refused(fetch, raw, own, binarization="dynamic")
    assert "data.binarization is 'dynamic', which is for grey images" in message
    assert "set data.binarization: none (or data.channels: 1)" in message
    assert fetch(own, binarization="dynamic", channels=1)["image_shape"][0] == 1


# Pictures that can't be read


def truncated(path):
    Image.effect_noise((50, 50), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])


def bomb(path):
    """A PNG of a few hundred bytes, 40,000 × 40,000 pixels."""
    write_png(path, struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0), bytes(1000))


UNREADABLE = {
    "truncated": (truncated, "truncated"),
    "bomb": (bomb, "pixels"),
    "a page": (lambda path: path.write_text("<!DOCTYPE html>"), "no picture"),
    "empty": (lambda path: path.touch(), "no picture"),
    "a program": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "no picture"),
    "a broken link": (lambda path: path.symlink_to("nowhere.png"), "no regular file"),
    "a pipe": (os.mkfifo, "no regular file"),
    "of floats": (lambda path: Image.new("F", (6, 4)).save(path, "TIFF"), "32 bit"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_picture_that_cannot_be_read_is_named_with_the_reason(own, raw, fetch, capsys, kind):
    make, reason = UNREADABLE[kind]
    save(own / "a", 10, mode="L", size=(50, 50))
    make(own / "a/bad.png")
    message = refused(fetch, raw, own)
    assert message.startswith("a picture can't be read, data.max_unreadable is 0: a/bad.png (")
    assert reason in message
    assert fetch(own, max_unreadable=1)["counts"] == {"train": 8, "test": 2}
    assert "left out, can't be read: a/bad.png (" in capsys.readouterr().out
    assert sorted(numbers(load(raw, "train"), 1) + numbers(load(raw, "test"), 1)) == list(range(10))


def test_pictures_of_which_none_can_be_read_are_too_few(own, raw, fetch):
    own.mkdir()
    (own / "a.png").touch()
    assert "0 images are too few" in refused(fetch, raw, own, max_unreadable=1)


def test_a_class_of_which_no_picture_can_be_read_is_refused(own, raw, fetch):
    save(own / "a")
    (own / "b").mkdir()
    truncated(own / "b/x.png")
    message = refused(fetch, raw, own, max_unreadable=1, image_size=5)
    assert message == "no picture of a class can be read, remove its folder: b"


@pytest.mark.parametrize("name", [b"caf\xe9/0.png", b"a/caf\xe9.txt"])
def test_a_name_that_is_not_utf8_is_refused(own, raw, fetch, name):
    save(own / "a")
    path = own / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    picture().save(path, "PNG")
    assert "caf\\udce9" in (message := refused(fetch, raw, own)) and "isn't UTF-8: rename it" in message


def test_all_pictures_that_cannot_be_read_are_named(own, raw, fetch, capsys):
    save(own, 10, mode="L", size=(50, 50))
    for name in ("x.png", "y.png"):
        truncated(own / name)
    (own / "z.png").touch()
    assert "3 pictures can't be read, data.max_unreadable is 2: x.png (" in refused(fetch, raw, own, max_unreadable=2)
    printed = capsys.readouterr().out
    assert "can't be read: y.png" in printed and "can't be read: z.png (no picture)" in printed


@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_a_folder_that_changes_while_it_is_read_is_refused(own, raw, fetch, monkeypatch, change):
    save(own, 10)

    def read_pixels(path, shape):
        target = own / "0.png" if change != "added" else own / "late.png"
        target.unlink(missing_ok=True) if change == "removed" else picture(99).save(target)
        return np.zeros(shape, np.uint8)

    monkeypatch.setattr(preparation, "read_pixels", read_pixels)
    assert f"{own} changed while it was read" in refused(fetch, raw, own)


# Arrays and IDX files


def grey_arrays(count=20):
    return np.arange(count, dtype=np.uint8)[:, None, None].repeat(5, 1).repeat(4, 2)


@pytest.mark.parametrize(
    "images, shape",
    [
        (grey_arrays(), [1, 5, 4]),
        (grey_arrays()[..., None], [1, 5, 4]),
        (grey_arrays()[:, None], [1, 5, 4]),
        (grey_arrays().astype(np.int64), [1, 5, 4]),
        (grey_arrays() / 255, [1, 5, 4]),
        (np.repeat(grey_arrays()[..., None], 3, 3), [3, 5, 4]),
        (np.repeat(grey_arrays()[:, None], 3, 1).repeat(2, 3), [3, 5, 8]),
    ],
    ids=["uint8", "channel last", "channel first", "int64", "floats", "colour last", "colour first"],
)
def test_an_array_of_any_layout_and_type_is_read(own, raw, fetch, images, shape):
    np.save(own.with_suffix(".npy"), images)
    record = fetch(own.with_suffix(".npy"))
    assert (record["name"], record["image_shape"], record["classes"]) == ("own", shape, [])
    for part, size in (("train", 16), ("test", 4)):
        pixels = load(raw, part).images
        assert (pixels == pixels[:, :1]).all() and len(pixels) == size
    every = torch.cat([load(raw, part).images[:, 0] for part in ("train", "test")])
    assert every.sort().values.tolist() == list(range(20))


def test_an_npz_file_with_parts_and_labels_is_read(own, raw, fetch):
    path = own.with_suffix(".npz")
    names = np.array(["dog", "cat"])
    images = grey_arrays()
    np.savez(path, x_train=images[:15], y_train=names[np.arange(15) % 2], x_test=images[15:], y_test=names[[1] * 5])
    record = fetch(path)
    assert (record["classes"], record["counts"]) == (["cat", "dog"], {"train": 15, "test": 5})
    train = load(raw, "train")
    assert train.labels.tolist() == [1 - number % 2 for number in train.images[:, 0].tolist()]
    np.savez(path, images=images, labels=np.arange(20)[:, None] % 2 + 3)  # a column, as Keras has them
    assert fetch(path)["classes"] == ["3", "4"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_pixels_of_0_and_1_are_black_and_white(own, raw, fetch, dtype):
    path = own.with_suffix(".npy")
    np.save(path, (grey_arrays() % 2).astype(dtype))
    fetch(path)
    assert load(raw, "train").images.unique().tolist() == [0, 255]


def test_idx_files_of_any_size_are_read(own, raw, fetch):
    own.mkdir()
    for part, count in (("train", 20), ("test", 8)):
        images, labels = FILES[part]
        (own / images).write_bytes(idx_bytes(grey_arrays(count)))
        (own / f"{labels}.gz").write_bytes(gzip.compress(idx_bytes((np.arange(count) % 3).astype(np.uint8))))
    record = fetch(own)
    assert (record["image_shape"], record["counts"]) == ([1, 5, 4], {"train": 20, "test": 8})
    test = load(raw, "test")
    assert test.labels.tolist() == [number % 3 for number in test.images[:, 0].tolist()]
    for name in FILES["test"]:
        for path in own.glob(f"{name}*"):
            path.unlink()
    assert fetch(own)["counts"] == {"train": 16, "test": 4}


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"x_test": grey_arrays()}, "test images only"),
        ({"images": grey_arrays(), "x_train": grey_arrays()}, "holds images, x_train, allowed are images, labels;"),
        ({"images": grey_arrays(), "labels": np.arange(3)}, "labels have shape (3,)"),
        ({"images": grey_arrays(), "labels": np.eye(20)}, "labels have shape (20, 20)"),
        ({"images": grey_arrays(), "labels": np.ones(20)}, "labels are float64"),
        ({"x_train": grey_arrays(), "x_test": grey_arrays()[:, :4]}, "test images (20, 4, 4)"),
        ({"x_train": grey_arrays(), "y_train": np.arange(20), "x_test": grey_arrays()}, "labels have shape (20,)"),
        ({"images": grey_arrays().reshape(20, 20)}, "holds uint8 (20, 20)"),
        ({"images": grey_arrays() - 1.0}, "pixels are from -1 to 18"),
        ({"images": grey_arrays()[:0]}, "holds no images"),
        ({"images": np.array([{}])}, "can't be read"),
    ],
)
def test_arrays_that_do_not_match_are_refused(own, raw, fetch, content, problem):
    path = own.with_suffix(".npz")
    np.savez(path, **content)
    message = refused(fetch, raw, path)
    assert problem in message and str(path) in message


# data/raw


def test_switching_between_data_sets_leaves_the_files_of_one(own, raw, fetch):
    save(own, 10)
    digits = fetch(source="bundled")
    idx = files(raw)
    fetch(own)
    assert set(files(raw)) == {"train.safetensors", "test.safetensors"}
    assert len(load(raw, "train")) == 8
    assert fetch(source="bundled") == digits
    assert files(raw) == idx
    assert load(raw, "train").images.shape == (4000, 784)


def test_a_file_that_another_program_wrote_is_neither_replaced_nor_deleted_nor_loaded(own, raw, fetch):
    save(own, 10)
    raw.mkdir()
    save_file({"images": np.zeros((1, 1, 2, 2), np.uint8)}, raw / "test.safetensors")
    for params in ({"path": own}, {"source": "bundled"}):
        assert "test.safetensors is not a file that this project wrote" in refused(fetch, raw, **params)
    with pytest.raises(DataError, match="not a file that this project wrote"):
        load(raw, "test")
    (raw / "test.safetensors").unlink()
    (raw / f"{FILES['test'][0]}.gz").write_bytes(gzip.compress(b"mine"))
    assert "is not a file that this project wrote" in refused(fetch, raw, own)


def test_the_files_are_safetensors_and_damage_is_named(own, raw, fetch):
    save(own / "a", 10)
    record = fetch(own)
    saved = load_file(raw / "train.safetensors")
    assert (saved["images"].shape, saved["labels"].tolist()) == ((8, *record["image_shape"]), [0] * 8)
    path = raw / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.safetensors can't be read .*dvc repro -f download"):
        load(raw, "train")
    fetch(own)
    assert len(load(raw, "train")) == 8


def test_a_record_without_classes_is_read_as_it_is(own, fetch, tmp_path):
    save(own, 10)
    fetch(own)
    assert json.loads((tmp_path / "dataset.json").read_text())["classes"] == []
