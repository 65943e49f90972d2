"""Puzzles are made of the images they say, and clips read from the folders that hold them."""

import cv2
import numpy as np
import pytest

from sklearn_g2d.datasets import load_ucsd, make_puzzles

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
