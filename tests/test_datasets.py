"""Puzzles are made of the images they say; images and clips are read as their files say."""

import io
import os
import struct
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from sklearn_g2d.datasets import load_images, load_ucsd, make_puzzles
from sklearn_g2d.datasets._images import _in_threads
from sklearn_g2d.utils.images import as_rows

LABELS = np.arange(60) % 6


def numbered_images(shape=(60, 4, 3), dtype=np.uint8):
    """Images that all their pixels number, so that a tile tells where it comes from."""
    numbers = np.arange(60, dtype=dtype).reshape(60, *[1] * (len(shape) - 1))
    return np.broadcast_to(numbers, shape)


def cut(puzzles, rows, columns):
    """Undo the composition: (n, rows, columns, channels, height, width)."""
    bands = [np.split(band, columns, axis=3) for band in np.split(puzzles, rows, axis=2)]
    return np.stack([np.stack(band, axis=1) for band in bands], axis=1)


@pytest.mark.parametrize("n_anomalous", [None, 0, 1, 5, 10])
@pytest.mark.parametrize("shape", [(60, 4, 3), (60, 1, 4, 3), (60, 3, 4, 3)])
def test_labels_name_the_tiles(n_anomalous, shape):
    images = numbered_images(shape)
    puzzles, tile_is_anomalous = make_puzzles(
        images, LABELS, 2, n_samples=7, grid_shape=(2, 5), n_anomalous=n_anomalous, random_state=0
    )
    channels = shape[1] if len(shape) == 4 else 1
    assert puzzles.shape == (7, channels, 8, 15)
    assert puzzles.dtype == np.uint8
    assert tile_is_anomalous.shape == (7, 2, 5)
    assert tile_is_anomalous.dtype == bool
    tiles = cut(puzzles, 2, 5).reshape(7, 2, 5, -1)
    assert (tiles == tiles[..., :1]).all()  # a tile is one image
    np.testing.assert_array_equal(LABELS[tiles[..., 0]] == 2, tile_is_anomalous)
    if n_anomalous is not None:
        assert (tile_is_anomalous.sum(axis=(1, 2)) == n_anomalous).all()


def test_tiles_stand_upright():
    image = np.arange(12.0).reshape(1, 4, 3)
    puzzles, _ = make_puzzles(image, [0], 1, n_samples=1, grid_shape=(2, 3), n_anomalous=0)
    np.testing.assert_array_equal(puzzles[0, 0], np.tile(image[0], (2, 3)))
    assert puzzles.dtype == np.float64


def test_channels_stay_apart():
    images = np.stack([np.full((2, 2), 1), np.full((2, 2), 2)])[np.newaxis]
    puzzles, _ = make_puzzles(images, [0], 1, n_samples=1, grid_shape=(3, 2), n_anomalous=0)
    assert (puzzles[0, 0] == 1).all()
    assert (puzzles[0, 1] == 2).all()


def test_natural_share_and_random_places():
    labels = np.where(np.arange(60) < 6, "odd", "even")
    _, natural = make_puzzles(numbered_images(), labels, "odd", n_samples=400, random_state=0)
    assert natural.mean() == pytest.approx(0.1, abs=0.01)
    assert natural.sum(axis=(1, 2)).std() > 2  # not the same number in each
    _, exact = make_puzzles(
        numbered_images(), labels, "odd", n_samples=400, n_anomalous=12, random_state=0
    )
    # Every place is taken about as often: 12 / 121 of 400, give or take 4 deviations.
    assert np.abs(exact.sum(axis=0) - 400 * 12 / 121).max() < 4 * np.sqrt(40)


def test_every_image_is_drawn():
    puzzles, _ = make_puzzles(numbered_images(), LABELS, 2, n_anomalous=6, random_state=0)
    assert set(np.unique(puzzles)) == set(range(60))


def test_seed():
    def make(seed):
        return make_puzzles(numbered_images(), LABELS, 2, n_samples=2, random_state=seed)[0]

    np.testing.assert_array_equal(make(0), make(0))
    assert not np.array_equal(make(0), make(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((60, 12))}, r"images must have shape .*got \(60, 12\)"),
        ({"labels": LABELS[:-1]}, r"labels must have shape \(60,\).*got \(59,\)"),
        ({"labels": LABELS[:, None]}, r"labels must have shape \(60,\).*got \(60, 1\)"),
        ({"anomalous_label": 7}, "No image has the label 7.*n_anomalous=0"),
        ({"anomalous_label": "2"}, "No image has the label '2'"),
        ({"anomalous_label": 7, "n_anomalous": 1}, "No image has the label 7"),
        ({"labels": np.full(60, 2)}, "All images have the anomalous label 2"),
        ({"labels": np.full(60, 2), "n_anomalous": 0}, "All images have the anomalous label 2"),
        ({"n_anomalous": 7}, "from 0 to 6.*2 x 3 grid, got 7"),
        ({"n_anomalous": -1}, "from 0 to 6.*got -1"),
        ({"n_anomalous": 0.5}, "from 0 to 6.*got 0.5"),
        ({"n_samples": 0}, "n_samples must be an integer of at least 1, got 0"),
        ({"grid_shape": 3}, "grid_shape must be two positive integers.*got 3"),
        ({"grid_shape": (3, 0)}, r"grid_shape must be two positive integers.*got \(3, 0\)"),
    ],
)
def test_errors_say_what_is_wrong(changed, message):
    given = {
        "images": numbered_images(),
        "labels": LABELS,
        "anomalous_label": 2,
        "grid_shape": (2, 3),
    }
    with pytest.raises(ValueError, match=message):
        make_puzzles(**given | changed)


def test_one_kind_is_enough_where_the_other_is_not_asked_for():
    images, labels = numbered_images(), np.full(60, 2)
    given = {"n_samples": 3, "grid_shape": (2, 3)}
    assert not make_puzzles(images, labels, 3, n_anomalous=0, **given)[1].any()
    assert make_puzzles(images, labels, 2, n_anomalous=6, **given)[1].all()


# UCSD


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def ucsd(tmp_path):
    """Two training clips and two test clips of different lengths, one with masks."""
    rng = np.random.default_rng(0)
    images = {}
    for clip, n_frames in {
        "Train/Train001": 3,
        "Train/Train002": 5,
        "Test/Test001": 12,
        "Test/Test002": 2,
    }.items():
        images[clip] = rng.integers(0, 256, size=(n_frames, 8, 12), dtype=np.uint8)
        for number, image in enumerate(images[clip], 1):
            write_image(tmp_path / clip / f"{number:03}.tif", image)
    masks = np.zeros((12, 8, 12), dtype=np.uint8)
    masks[3:, 2, 5] = 1  # some copies hold 1 instead of 255
    for number, mask in enumerate(masks, 1):
        write_image(tmp_path / "Test/Test001_gt" / f"{number:03}.bmp", mask)
    (tmp_path / "Test/Test001/._001.tif").write_bytes(b"left by macOS")
    (tmp_path / "Test/Test.m").write_text("left by the authors")
    return tmp_path, images, masks


def test_ucsd_layout(ucsd):
    folder, images, masks = ucsd
    data = load_ucsd(folder)
    assert data.train_names == ["Train001", "Train002"]
    assert data.test_names == ["Test001", "Test002"]
    for part in ("Train", "Test"):
        clips = data[part.lower()]
        names = data[f"{part.lower()}_names"]
        for name, clip in zip(names, clips, strict=True):
            assert clip.dtype == np.uint8
            np.testing.assert_array_equal(clip[:, 0], images[f"{part}/{name}"])
    assert data.masks[0].dtype == bool
    np.testing.assert_array_equal(data.masks[0], masks > 0)
    assert data.masks[1] is None


def test_ucsd_reduced(ucsd):
    folder, images, _ = ucsd
    data = load_ucsd(str(folder), reduce=2)
    means = images["Train/Train002"].reshape(5, 4, 2, 6, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(data.train[1][:, 0], means, atol=0.5)
    expected = np.zeros((4, 6), dtype=bool)
    expected[1, 2] = True  # one of four pixels is anomalous
    np.testing.assert_array_equal(data.masks[0][5], expected)


def test_ucsd_complains(ucsd):
    folder, _, masks = ucsd
    with pytest.raises(ValueError, match=r'no folders Train001.*holds "Train" and "Test"'):
        load_ucsd(folder / "Train")
    with pytest.raises(ValueError, match="reduce must be an integer of at least 1, got 0"):
        load_ucsd(folder, reduce=0)
    (folder / "Test/Test001_gt/012.bmp").unlink()
    with pytest.raises(ValueError, match="Test001_gt holds 11 masks for 12 frames"):
        load_ucsd(folder)
    write_image(folder / "Test/Test001_gt/012.bmp", masks[0][:4])
    with pytest.raises(ValueError, match=r"012.bmp has 4 x 12 pixels, but those before it 8 x 12"):
        load_ucsd(folder)
    (folder / "Train/Train002/004.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"004.tif is empty, damaged or no image"):
        load_ucsd(folder)
    for path in (folder / "Train/Train001").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"Train001 holds no images \*.tif"):
        load_ucsd(folder)


# Images of any kind


@pytest.fixture
def rgb():
    """A picture without symmetry, 12 x 20 pixels of bytes (height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, size=(12, 20, 3), dtype=np.uint8)


@pytest.fixture
def deep():
    """A gray picture of 16 bits, black and white included."""
    picture = np.random.default_rng(0).integers(0, 2**16, size=(12, 20), dtype=np.uint16)
    picture[0, :2] = 0, 65535
    return picture


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def first(path, **options):
    """Rows, columns and channels of the only image of a list."""
    (image,) = load_images([path], **options).images
    return np.moveaxis(image, 0, -1)


def deep_png(path, pixels, color_type):
    """Write a PNG of 16 bits a channel, which Pillow writes only in gray."""
    height, width = pixels.shape[:2]
    head = struct.pack(">2I5B", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks.items()
        )
    )
    return path


def test_images_of_a_folder_come_in_the_order_of_their_paths(tmp_path, rgb):
    names = ["b/2.png", "a.PNG", "b/10.tiff", "c.jpg", "d.bmp", "e.webp", "b/deep/er/x.jpeg"]
    for number, name in enumerate(names):
        save(tmp_path / name, np.full_like(rgb, 30 * number))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "mask.npy").write_bytes(b"no image")
    (tmp_path / "._a.png").write_bytes(b"left by macOS")
    (tmp_path / "folder.png").mkdir()
    save(tmp_path / ".thumbnails" / "a.png", rgb)
    (tmp_path / "link").symlink_to(tmp_path / "b", target_is_directory=True)
    data = load_images(tmp_path)
    assert data.images.shape == (7, 3, 12, 20)
    assert data.images.dtype == np.uint8
    in_order = ["a.PNG", "b/10.tiff", "b/2.png", "b/deep/er/x.jpeg", "c.jpg", "d.bmp", "e.webp"]
    assert data.paths == [tmp_path / name for name in in_order]
    expected = [30 * names.index(name) for name in in_order]
    np.testing.assert_allclose(data.images.mean(axis=(1, 2, 3)), expected, atol=2)
    np.testing.assert_array_equal(load_images(str(tmp_path)).images, data.images)
    chosen = load_images(iter([str(data.paths[4]), data.paths[0]]))
    assert chosen.paths == [data.paths[4], data.paths[0]]
    np.testing.assert_array_equal(chosen.images, data.images[[4, 0]])


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, rgb, monkeypatch):
    save(tmp_path / "a.png", rgb)
    save(tmp_path / "locked" / "b.png", rgb)
    scandir = os.scandir

    def denied(path):  # root may list every folder
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="locked"):
        load_images(tmp_path)


def test_pipes_and_devices_are_not_opened(tmp_path, rgb):
    save(tmp_path / "a.png", rgb)
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is a pipe or a device"):
        load_images(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_pixels_are_those_of_the_file(tmp_path, rgb, suffix):
    path = save(tmp_path / f"a.{suffix}", rgb)
    np.testing.assert_array_equal(first(path), rgb)
    gray = first(path, channels=1)
    assert gray.shape == (12, 20, 1)
    np.testing.assert_allclose(gray[..., 0], rgb @ [0.299, 0.587, 0.114], atol=1)
    path = save(tmp_path / f"gray.{suffix}", rgb[..., 0])
    np.testing.assert_array_equal(first(path), np.repeat(rgb[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(first(path, channels=1), rgb[..., :1])


# Whether row 0 is shown at the top, and column 0 at the left; from 5 on they change places.
SHOWN = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_photographs_are_turned_as_a_viewer_does(tmp_path, suffix, orientation):
    stored = np.zeros((32, 48), dtype=np.uint8)
    stored[:16, :16] = 255  # the corner where row 0 and column 0 meet
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif)
    expected = np.zeros((32, 48) if orientation < 5 else (48, 32))
    expected[:16, :16] = 255
    top, left = SHOWN[orientation]
    expected = expected[:: 1 if top else -1, :: 1 if left else -1]
    np.testing.assert_allclose(first(path, channels=1)[..., 0], expected, atol=3)
    small = expected.reshape(expected.shape[0] // 8, 8, -1, 8).mean(axis=(1, 3))
    shown = first(path, channels=1, size=4)[..., 0]
    assert shown.shape == small.shape
    assert np.corrcoef(shown.ravel(), small.ravel())[0, 1] > 0.98
    pair = first(path, channels=1, size=(8, 12))[..., 0]
    assert pair.shape == (8, 12)
    assert pair[0 if top else -1, 0 if left else -1] > 240


def test_palettes_and_transparency(tmp_path, rgb):
    with_palette = Image.fromarray(rgb).quantize(200)
    path = save(tmp_path / "palette.png", with_palette)
    np.testing.assert_array_equal(first(path), np.asarray(with_palette.convert("RGB")))
    path = save(tmp_path / "clear.png", with_palette, transparency=with_palette.getpixel((3, 2)))
    assert first(path)[2, 3].tolist() == [255, 255, 255]
    alpha = np.zeros((12, 20, 1), dtype=np.uint8)
    alpha[:, 5:], alpha[:, 10:] = 51, 255
    expected = rgb.astype(float)
    expected[:, :5] = 255  # laid over white
    expected[:, 5:10] = 0.2 * expected[:, 5:10] + 0.8 * 255
    path = save(tmp_path / "alpha.png", np.concatenate([rgb, alpha], axis=-1))
    np.testing.assert_allclose(first(path).astype(float), expected, atol=1)
    path = save(tmp_path / "gray.png", np.concatenate([rgb[..., :1], alpha], axis=-1))
    np.testing.assert_allclose(first(path, channels=1).astype(float), expected[..., :1], atol=1)
    path = save(tmp_path / "bits.png", Image.fromarray(rgb[..., 0] > 99))
    np.testing.assert_array_equal(first(path, channels=1)[..., 0], 255 * (rgb[..., 0] > 99))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_of_16_bits_keeps_its_values(tmp_path, deep, suffix):
    path = save(tmp_path / f"a.{suffix}", deep)
    for channels in (1, 3):
        image = first(path, channels=channels)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, np.repeat(deep[..., None], channels, axis=-1))
    halves = np.repeat([[0, 65535]], 20, axis=1)
    path = save(tmp_path / f"b.{suffix}", np.repeat(halves, 20, axis=0).astype(np.uint16))
    small = first(path, size=(10, 20), channels=1)[..., 0]
    assert small.dtype == np.uint16
    assert (small[:, :8] == 0).all()
    assert (small[:, 12:] == 65535).all()


def test_gray_of_16_bits_in_other_orders(tmp_path, deep):
    path = tmp_path / "motorola.tif"
    Image.frombytes("I;16B", (20, 12), deep.astype(">u2").tobytes()).save(path)
    np.testing.assert_array_equal(first(path, channels=1)[..., 0], deep)
    path = save(tmp_path / "inverse.tif", deep, tiffinfo={262: 0})
    np.testing.assert_array_equal(first(path, channels=1)[..., 0], 65535 - deep)


@pytest.mark.parametrize("kind", ["jpg", "png", "16 bits"])
def test_large_images_are_averaged_not_sampled(tmp_path, kind):
    """Of a fine checkerboard a mean is gray, and a sample is black or white."""
    board = np.kron(np.indices((128, 192)).sum(axis=0) % 2, np.ones((2, 2)))
    levels, dtype = (65535, np.uint16) if kind == "16 bits" else (255, np.uint8)
    suffix = kind if kind == "jpg" else "png"
    path = save(tmp_path / f"a.{suffix}", (levels * board).astype(dtype))
    small = first(path, size=16)
    assert small.shape == (16, 24, 3)
    np.testing.assert_allclose(small / levels, 0.5, atol=0.02)
    ramp = np.broadcast_to(np.linspace(0, levels, 384), (256, 384))
    path = save(tmp_path / f"b.{suffix}", ramp.astype(dtype))
    expected = np.linspace(0, 1, 384).reshape(24, 16).mean(axis=1)
    error = first(path, size=16).mean(axis=(0, 2)) / levels - expected
    assert np.abs(error[1:-1]).max() < 0.006


def test_the_shorter_side_or_both(tmp_path, rgb):
    for number, shape in enumerate([(300, 401), (150, 200), (75, 100)]):
        save(tmp_path / f"{number}.jpg", np.zeros((*shape, 3), dtype=np.uint8))
    save(tmp_path / "b/upright.jpg", np.zeros((401, 300, 3), dtype=np.uint8))
    wide = sorted(tmp_path.glob("*.jpg"))
    assert load_images(wide, size=30).images.shape == (3, 3, 30, 40)
    assert load_images(wide[:2], size=np.int64(75), channels=1).images.shape == (2, 1, 75, 100)
    assert load_images(tmp_path, size=(30, 50)).images.shape == (4, 3, 30, 50)
    assert load_images([tmp_path / "b/upright.jpg"], size=30).images.shape == (1, 3, 40, 30)
    line = save(tmp_path / "b/line.png", rgb[:1])
    assert load_images([line], size=(1, 1)).images.shape == (1, 3, 1, 1)
    message = (
        r"unequal sizes \(height x width\): .*0.jpg has 300 x 401 pixels, .*1.jpg 150 x 200. "
        r"To bring all .* such as size=\(300, 401\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        load_images(wide)
    message = (
        r"unequal sizes \(height x width, resized by size=30\): .*0.jpg has 30 x 40 pixels, "
        r".*upright.jpg 40 x 30.*size=\(30, 40\); proportions are not kept then"
    )
    with pytest.raises(ValueError, match=message):
        load_images([*wide, tmp_path / "b/upright.jpg"], size=30)


def damaged(content):
    """One bit is wrong in the middle, among the pixels."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


BROKEN = {
    "empty": (lambda png, jpg: b"", "is empty, damaged, or in none of the formats PNG, JPEG"),
    "text": (lambda png, jpg: b"no image " * 9, "is .* in none of the formats.* Convert it to PNG"),
    "cut PNG": (
        lambda png, jpg: png[: len(png) // 2],
        "is damaged, cut short, or .* Copy it again, save it as PNG",
    ),
    "cut JPEG": (lambda png, jpg: jpg[:-99], "is damaged, cut short, or of a kind .*truncated"),
    "one bit": (lambda png, jpg: damaged(png), "is damaged, cut short"),
    "head only": (lambda png, jpg: png[:30], "is (empty, damaged|damaged, cut short)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named(tmp_path, rgb, kind):
    files = [io.BytesIO(), io.BytesIO()]
    for file, name in zip(files, ("PNG", "JPEG"), strict=True):
        Image.fromarray(rgb).save(file, name)
    make, message = BROKEN[kind]
    save(tmp_path / "a.png", rgb)
    (tmp_path / "b.png").write_bytes(make(*(file.getvalue() for file in files)))
    with pytest.raises(ValueError, match=rf"b.png {message}") as caught:
        load_images(tmp_path)
    assert "\n" not in str(caught.value)
    assert "object at" not in str(caught.value)


def test_kinds_of_pixels_that_would_be_misread_are_refused(tmp_path, rgb, deep):
    colours = np.stack([deep, deep, deep], axis=-1)
    cv2.imwrite(str(tmp_path / "rgb.tif"), colours)
    deep_png(tmp_path / "rgb.png", colours, 2)
    deep_png(tmp_path / "alpha.png", colours[..., :2], 4)
    save(tmp_path / "floats.tif", deep.astype(np.float32))
    save(tmp_path / "integers.tif", deep.astype(np.int32))
    save(tmp_path / "signed.tif", rgb[..., 0], tiffinfo={339: 2})
    pages = Image.fromarray(rgb)
    for name in ("pages.tif", "pages.webp", "pages.png"):
        save(tmp_path / name, pages, save_all=True, append_images=[Image.fromarray(255 - rgb)])
    save(tmp_path / "other.png", pages, format="GIF")
    messages = {
        "rgb.tif": "colours or transparency of 16 bits, which Pillow would cut to 8. Save it with",
        "rgb.png": "colours or transparency of 16 bits, which Pillow would cut to 8",
        "alpha.png": "colours or transparency of 16 bits, which Pillow would cut to 8",
        "floats.tif": "holds floats, .* Scale them to integers from 0 to 65535",
        "integers.tif": "signed integers, or integers of 32 bits. Save them as 8 or 16 bits",
        "signed.tif": "signed integers, or integers of 32 bits",
        "pages.tif": "holds 2 pages or frames. Save the one that you need as a separate file",
        "pages.webp": "holds 2 pages",
        "pages.png": "holds 2 pages",
        "other.png": "none of the formats PNG, .* although its name may say so. Convert it",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            load_images([tmp_path / name])


def test_a_photograph_with_a_preview_is_read(tmp_path, rgb):
    rgb = np.kron(rgb, np.ones((8, 8, 1), dtype=np.uint8))
    path, preview = tmp_path / "camera.jpg", Image.fromarray(255 - rgb[:24, :40])
    save(path, rgb, format="MPO", save_all=True, append_images=[preview])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(first(path).astype(int) - rgb).mean() < 20


def test_kinds_are_not_mixed(tmp_path, rgb, deep):
    save(tmp_path / "a.png", rgb)
    save(tmp_path / "b.png", deep)
    with pytest.raises(
        ValueError, match=r"a.png has 8 bits per channel, but .*b.png has 16. Convert"
    ):
        load_images(tmp_path)


@pytest.mark.parametrize(("limit", "action"), [(100, "default"), (200, "error")])
def test_huge_files_are_named(tmp_path, rgb, monkeypatch, limit, action):
    """Pillow raises at twice its limit, and warns before."""
    path = save(tmp_path / "a.png", rgb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ValueError, match=r"a.png has more pixels .* raise PIL.Image.MAX_IMAGE"):
            load_images([path])


def test_what_is_asked_for_is_checked(tmp_path, rgb):
    path = save(tmp_path / "a.png", rgb)
    (tmp_path / "empty").mkdir()
    wrong = [
        ({"folder": tmp_path / "empty"}, ValueError, "no images. Images are .* in .png, .jpg"),
        ({"folder": tmp_path / "none"}, FileNotFoundError, r"There is no folder .*none\.$"),
        ({"folder": path}, ValueError, "a.png is a file. Pass its folder, or a list of files"),
        ({"folder": []}, ValueError, "The list of images is empty"),
        ({"folder": [tmp_path]}, ValueError, "is a folder. Pass it alone"),
        ({"folder": [tmp_path / "b.png"]}, FileNotFoundError, "b.png"),
        ({"folder": 3}, TypeError, "folder must be the path of a folder, or a list .* got int"),
        ({"folder": [rgb]}, TypeError, "folder must be the path of a folder, or a list"),
        ({"channels": 4}, ValueError, r"channels must be 3 .* or 1 \(gray\), got 4"),
        ({"memory_map": tmp_path / "x.bin"}, ValueError, 'ends in ".npy", got .*x.bin'),
        ({"memory_map": tmp_path / "b" / "x.npy"}, FileNotFoundError, "no folder .*b for memory"),
    ]
    wrong += [
        ({"size": size}, ValueError, "size must be a positive integer .* got")
        for size in (0, -1, 2.5, True, (3,), (3, 4, 5), (3, 0), "12")
    ]
    for changed, error, message in wrong:
        with pytest.raises(error, match=message):
            load_images(**{"folder": tmp_path} | changed)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow.*pip install 'sklearn_g2d\[images\]'"):
        load_images(tmp_path)


def test_images_of_a_file_on_the_disk(tmp_path, deep):
    for number in range(5):
        save(tmp_path / f"{number}.png", np.roll(deep, number))
    in_memory = load_images(tmp_path)
    target = tmp_path / "all.npy"
    target.write_bytes(b"a former file")
    mapped = load_images(tmp_path, memory_map=str(target))
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.images.flags.writeable
    assert mapped.images.dtype == np.uint16
    assert mapped.paths == in_memory.paths
    np.testing.assert_array_equal(mapped.images, in_memory.images)
    rows, image_shape = as_rows(mapped.images, None, name="detector", fitted=False)
    assert image_shape == (3, 12, 20)
    assert isinstance(rows, np.memmap)  # nothing is copied
    whole = target.read_bytes()
    (tmp_path / "3.png").write_bytes(b"")
    for name in ("all.npy", "new.npy"):
        with pytest.raises(ValueError, match=r"3.png is empty"):
            load_images(tmp_path, memory_map=tmp_path / name)
    assert target.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == [*(f"{number}.png" for number in range(5)), "all.npy"]


def test_images_are_never_all_in_memory(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((200, 300, 3), dtype=np.uint8))
    tracemalloc.start()
    try:
        images = load_images([path] * 60, memory_map=tmp_path / "all.npy").images
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images.shape == (60, 3, 200, 300)
    assert peak < images.nbytes / 2


def test_few_images_wait_at_once():
    """Also if those that are ready are not taken."""
    n_started = []
    numbers = list(range(200))
    results = _in_threads(lambda number: n_started.append(number) or number, numbers)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(n_started) <= 9  # two for each of four threads, and the one that was taken
    assert list(results) == numbers[1:]


def test_nothing_of_pillow_is_changed_and_nothing_stays_open(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb)
    (tmp_path / "b.jpg").write_bytes(path.read_bytes()[:-300])

    def state():
        descriptors = Path("/proc/self/fd")  # of Linux
        n_open = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
        settings = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK
        return settings, n_open, threading.active_count(), warnings.filters[:]

    before = state()
    with pytest.raises(ValueError, match=r"b.jpg is damaged"):
        load_images([*[path] * 9, tmp_path / "b.jpg", *[path] * 9])
    load_images([path] * 9)
    assert state() == before
