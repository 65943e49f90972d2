"""What AVIDDetector takes and refuses: shapes, dtypes, odd values, too few of anything."""

import warnings
from functools import partial

import avid_detectors
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.utils import get_tags

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import (
    AdversarialInpainting,
    CellInpainting,
    CellNetwork,
    MaskedInpainting,
    PatchNet,
    UNet,
    _models,
)
from sklearn_g2d.errors import TrainingDivergedError

ON_IMAGES = pytest.mark.parametrize("kind", ["images", "paper images"])
ON_TABLES = pytest.mark.parametrize("kind", ["table", "paper table"])
ON_BOTH = pytest.mark.parametrize("kind", ["images", "paper images", "table", "paper table"])


make_detector = partial(avid_detectors.make_detector, channels=2, table_steps=3)


@pytest.fixture(scope="module", autouse=True)
def _short_batches():
    """Small images are scored a hundred at once, and a batch of one is filled up to that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_models, "_SCORING_PIXELS", 4 * 24 * 24)
        yield


def textures(n, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).cumsum(axis=-1)


@pytest.fixture
def X():
    return textures(14, (1, 24, 24))


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(40, 4))


def fit(X, kind, **changed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least")  # of few rows
        return make_detector(kind, **changed).fit(X)


def maps_of(X, kind, X_test=None, **changed):
    """Maps, all of whose kinds and whose scores have been found finite."""
    detector = fit(X, kind, **changed)
    X_test = X if X_test is None else X_test
    assert np.isfinite(detector.score_samples(X_test)).all()
    assert np.isfinite(detector.inpaint(X_test)).all()
    drawn = detector.anomaly_map(X_test)
    assert np.isfinite(drawn).all()
    assert drawn.dtype == np.float64
    return drawn


# Shapes


@ON_IMAGES
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 37, 50), (2, 24, 20), (1, 48, 9)])
def test_maps_have_exactly_the_size_of_the_images(kind, shape):
    X = textures(12, shape)
    said = {"image_shape": shape} if shape[0] == 2 else {}
    detector = fit(X, kind, region_size="auto", **said)
    assert detector.image_shape_ == shape
    assert detector.region_size_ == max(min(shape[1:]) // 8, min(8, -(-min(shape[1:]) // 2)))
    for method in (detector.anomaly_map, detector.predict_mask):
        drawn = method(X[:3])
        assert drawn.shape == (3, *shape[1:])
    assert detector.inpaint(X[:3]).shape == (3, *shape)
    drawn = detector.anomaly_map(X, "inpainter")
    assert np.isfinite(drawn).all()
    assert (np.ptp(drawn, axis=0) > 0).all()  # no pixel is left out


@ON_IMAGES
@pytest.mark.parametrize("region_size", [3, 24])
def test_any_region_size_up_to_the_image(X, kind, region_size):
    detector = fit(X, kind, region_size=region_size, combination="inpainter")
    assert detector.region_size_ == region_size
    step = region_size // 2
    n = (24 - region_size) // step + 1
    assert detector.region_scores(X).shape == (14, n, n)
    assert len(np.unique(detector.score_samples(X))) == 14


@ON_IMAGES
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 1, 20)])
def test_tiny_images(kind, shape):
    X = np.random.default_rng(0).normal(size=(5, *shape))
    assert maps_of(X, kind, region_size="auto").shape == (5, *shape[1:])


@ON_IMAGES
def test_images_larger_than_what_is_scored_at_once(kind):
    X = textures(4, (1, 200, 150))
    detector = fit(X, kind, region_size="auto")
    assert detector.region_size_ == 18
    assert detector.anomaly_map(X[:2]).shape == (2, 200, 150)
    assert detector.inpaint(X[:1]).shape == (1, 1, 200, 150)


@ON_IMAGES
def test_large_images_are_scaled_down(kind):
    X = textures(3, (1, 512, 512))
    detector = fit(X, kind, region_size="auto", training__max_steps=1)
    assert detector.region_size_ == 64
    assert detector.region_scores(X[:2]).shape == (2, 15, 15)
    drawn = detector.anomaly_map(X[:2])
    assert drawn.shape == (2, 512, 512)
    assert np.isfinite(drawn).all()


@ON_TABLES
@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 6, 23])
def test_maps_of_tables_have_their_shape(kind, n_features):
    X = np.random.default_rng(0).normal(size=(20, n_features))
    detector = fit(X, kind)
    assert detector.image_shape_ is None
    for method in (detector.anomaly_map, detector.predict_mask, detector.inpaint):
        assert method(X[:3]).shape == (3, n_features)
    drawn = detector.anomaly_map(X)
    assert (np.ptp(drawn, axis=0) > 0).all()


@ON_IMAGES
def test_rows_of_pixels_are_judged_like_images(X, kind):
    rows = X.reshape(14, -1)
    images = fit(X, kind)
    by_rows = fit(rows, kind, image_shape=[1, 24, 24])
    expected = images.anomaly_map(X)
    for detector in (images, by_rows):
        assert detector.image_shape_ == (1, 24, 24)
        assert detector.n_features_in_ == 576
        for x in (X, rows):
            np.testing.assert_array_equal(detector.anomaly_map(x), expected)
    as_table = fit(rows, "table")
    assert as_table.image_shape_ is None
    assert as_table.anomaly_map(rows).shape == (14, 576)


def test_tags_tell_of_images():
    tags = get_tags(AVIDDetector()).input_tags
    assert tags.two_d_array
    assert tags.three_d_array


# Values


@ON_IMAGES
def test_bytes_and_floats_are_judged_alike(kind):
    X = np.random.default_rng(0).integers(256, size=(12, 3, 24, 24), dtype=np.uint8)
    expected = maps_of(X, kind, precision="float32")
    same = maps_of(X.astype(float), kind, precision="float32")
    np.testing.assert_array_equal(same, expected)
    for changed in (X.astype(np.float32), X / 255, 1e3 * X - 7):
        drawn = maps_of(changed, kind, precision="float32")
        np.testing.assert_allclose(drawn, expected, atol=1e-3)


@ON_TABLES
def test_units_of_a_table_change_nothing(table, kind):
    rng = np.random.default_rng(1)
    new = 3 * rng.normal(size=(20, 4))
    scale, shift = np.array([1e30, 1e-30, 255, 3]), np.array([0, 0, 100, -5])
    expected = maps_of(table, kind, new)
    changed = maps_of(scale * table + shift, kind, scale * new + shift)
    np.testing.assert_allclose(changed, expected, atol=1e-3)


@ON_IMAGES
def test_units_of_intensity_change_nothing(X, kind):
    expected = maps_of(X, kind, precision="float32")
    for scale in (1e30, 1e-30):
        drawn = maps_of(scale * X, kind, precision="float32")
        np.testing.assert_allclose(drawn, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
@ON_TABLES
def test_dtypes(kind, dtype):
    maps_of(np.random.default_rng(0).integers(0, 2, size=(30, 6)).astype(dtype), kind)


@ON_IMAGES
def test_memory_layout_does_not_matter(X, kind, tmp_path):
    expected = maps_of(X, kind)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    channels_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)
    for images in (mapped, channels_last):
        np.testing.assert_array_equal(maps_of(images, kind), expected)


@ON_IMAGES
def test_wild_pixels_stay_finite(X, kind):
    detector = fit(X, kind)
    wild = np.repeat(X[:1], 4, axis=0)
    wild[:, 0, 12, 12] = [1e5, 1e30, 1e300, -1.7e308]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (detector.score_samples, detector.anomaly_map, detector.inpaint):
            assert np.isfinite(method(wild)).all()


@pytest.mark.parametrize("value", [1e30, -1.7e308])
@ON_TABLES
def test_a_wild_value_is_irregular(table, kind, value):
    wild = table[:1].copy()
    wild[0, 2] = value
    detector = fit(table, kind, training__max_steps=100)
    drawn = detector.anomaly_map(np.concatenate([table, wild]), "inpainter")
    assert np.isfinite(drawn).all()
    assert drawn[-1].argmax() == 2
    assert drawn[-1, 2] > drawn[:-1].max()
    assert np.isfinite(detector.score_samples(wild)).all()


@ON_IMAGES
def test_a_wild_pixel_in_training(X, kind):
    X[3, 0, 5, 5] = 1e30
    drawn = maps_of(X, kind)
    assert drawn[3].max() == drawn.max()


@ON_IMAGES
def test_pixels_beyond_a_variance(X, kind):
    X[3, 0, 5, 5] = 1e300
    with pytest.raises(ValueError, match=r"values up to 1e\+300.* Rescale"):
        fit(X, kind)


@ON_TABLES
def test_values_beyond_a_variance(table, kind):
    table[7, 2] = 1e300
    with pytest.raises(ValueError, match=r"Column 2 holds values up to 1e\+300.* Rescale"):
        fit(table, kind)


# Too little to learn from


@ON_IMAGES
@pytest.mark.parametrize("n", [2, 9])
def test_very_few_images(X, kind, n):
    maps_of(X[:n], kind, X)


@ON_TABLES
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_very_few_rows(table, kind, n):
    maps_of(table[:n], kind, table)


@ON_BOTH
@pytest.mark.parametrize("value", [0, 7])
def test_samples_all_alike(kind, value):
    shape = (12, 1, 24, 24) if kind.endswith("images") else (12, 4)
    X = np.full(shape, value, dtype=np.uint8)
    other = X[:1].copy()
    other[..., 2:10] += 9
    detector = make_detector(kind, combination="inpainter")
    with pytest.warns(UserWarning, match="All training samples are alike") as caught:
        detector.fit(X)
    assert caught[0].filename == __file__
    for source in ("combined", "detector"):
        assert np.isfinite(detector.anomaly_map(other, source)).all()
    assert np.isfinite(detector.inpaint(other)).all()
    same, changed = detector.score_samples(np.concatenate([X[:1], other]))
    assert changed < same


@ON_IMAGES
def test_one_image_many_times(X, kind):
    with pytest.warns(UserWarning, match="All training samples are alike"):
        detector = make_detector(kind).fit(np.repeat(X[:1], 12, axis=0))
    assert np.isfinite(detector.score_samples(X)).all()


@ON_IMAGES
def test_flat_images_of_different_brightness(kind):
    X = np.arange(12.0)[:, None, None, None] * np.ones((1, 24, 24))
    maps_of(X, kind, textures(3, (1, 24, 24)))


def test_a_constant_column_counts_once_it_changes(table):
    X = np.column_stack([table, np.full(len(table), 7.0)])
    changed = X[:1].copy()
    changed[0, -1] = 17.0
    drawn = maps_of(X, "table", np.concatenate([X, changed]), training__max_steps=100)
    assert drawn[-1].argmax() == 4
    assert drawn[-1, 4] > drawn[:-1].max()


@ON_TABLES
@pytest.mark.parametrize("columns", [[0], [0, 0, 0]], ids=["one", "duplicates"])
def test_one_column_and_duplicate_columns(table, kind, columns):
    maps_of(table[:, columns], kind)


def test_per_location_of_few_images(X):
    for n in (2, 14):
        maps_of(X[:n], "images", X, per_location=True)


# Refusals


@pytest.mark.parametrize(
    ("params", "bad", "message"),
    [
        ({}, lambda x: np.where(x > 3, np.nan, x), "contains NaN"),
        ({}, lambda x: np.where(x > 3, np.inf, x), "contains infinity"),
        ({}, lambda x: np.moveaxis(x, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        ({}, lambda x: x[:, 0], r"X has shape \(14, 24, 24\), of dim 3.*pass X\[:, np.newaxis\]"),
        ({}, lambda x: x[None], "dim 5"),
        ({}, lambda x: x[0], r"X has shape \(1, 24, 24\), of dim 3"),
        ({}, lambda x: x[:1], "1 sample.* while a minimum of 2 is required"),
        ({}, lambda x: x[:0], "0 sample"),
        ({}, lambda x: x + 1j, "Complex data not supported"),
        ({}, lambda x: pd.DataFrame({"image": list(x)}), "pass np.stack"),
        (
            {"region_size": 25},
            lambda x: x,
            "region_size=25 is larger than the images, which have 24 x 24 pixels. Lower it",
        ),
        ({}, lambda x: x[..., :11], "region_size=12 is larger than .* 24 x 11 pixels"),
        ({"image_shape": (24, 24)}, lambda x: x, r"three positive integers.* got \(24, 24\)"),
        (
            {"image_shape": (3, 24, 24)},
            lambda x: x,
            r"image shape \(1, 24, 24\), but AVIDDetector was given image_shape=\(3, 24, 24\)",
        ),
        (
            {"image_shape": (1, 24, 24)},
            lambda x: x.reshape(14, -1)[:, :570],
            r"X has 570 features, but image_shape=\(1, 24, 24\) asks for 576",
        ),
    ],
)
def test_bad_training_images(X, params, bad, message):
    with pytest.raises(ValueError, match=message):
        make_detector("images", **params).fit(bad(X))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: np.where(X > 2, np.nan, X), "contains NaN"),
        (lambda X: sparse.csr_array(X), r"X is sparse: pass X.toarray\(\)"),
        (lambda X: X.astype(str).astype(object) + "cm", "text in 4 of 4 columns"),
        (lambda X: X[:1], "1 sample.* while a minimum of 2 is required"),
        (lambda X: X[:, :0], "0 feature"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
    ],
)
def test_bad_training_rows(table, bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_detector("table").fit(bad(table))


@ON_IMAGES
def test_bad_images_to_judge(X, kind):
    detector = fit(X, kind)
    for bad, message in [
        (np.repeat(X, 3, axis=1), r"image shape \(3, 24, 24\), but .* fitted on \(1, 24, 24\)"),
        (X[..., :23], r"image shape \(1, 24, 23\), but .* was fitted on \(1, 24, 24\)"),
        (np.moveaxis(X, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        (X[:, 0], r"of dim 3.* pass X\[:, np.newaxis\]"),
        (X.reshape(14, -1)[:, 1:], "X has 575 features, but .* is expecting 576 features"),
        (np.where(X > 3, np.nan, X), "contains NaN"),
        (X[0], r"X has shape \(1, 24, 24\), of dim 3"),
        (X[:0], "0 sample"),
    ]:
        for method in (
            detector.anomaly_map,
            detector.region_scores,
            detector.predict_mask,
            detector.inpaint,
            detector.score_samples,
            detector.predict,
            detector.p_values,
        ):
            with pytest.raises(ValueError, match=message):
                method(bad)


def test_a_table_is_no_image(X, table):
    training = AdversarialInpainting(max_steps=2)  # for both
    detector = AVIDDetector(training=training, random_state=0).fit(X)
    assert detector.region_size_ == 8
    detector.fit(table)
    assert detector.image_shape_ is None
    assert detector.region_size_ == 1
    assert detector.anomaly_map(table).shape == table.shape
    assert detector.inpaint(table).shape == table.shape
    with pytest.raises(ValueError, match=r"image shape \(1, 24, 24\), but .* on rows of a table"):
        detector.anomaly_map(X)
    assert detector.fit(X).anomaly_map(X).shape == (14, 24, 24)
    detector.set_params(warm_start=True)
    with pytest.raises(ValueError, match="image_shape is now None"):
        detector.fit(table)
    assert detector.image_shape_ == (1, 24, 24)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"contamination": 0.0}, r"'contamination' .* range \(0.0, 0.5\].* Got 0.0"),
        ({"region_size": 1}, r"'region_size' .* Got 1"),
        ({"region_size": 8.0}, r"'region_size' .* Got 8.0"),
        ({"combination": "both"}, r"'combination' .* Got 'both'"),
        ({"error": "squared"}, r"'error' .* Got 'squared'"),
        ({"top_fraction": 0.0}, r"'top_fraction' .* Got 0.0"),
        ({"per_location": "yes"}, r"'per_location' .* Got 'yes'"),
        ({"normalize_illumination": "yes"}, r"'normalize_illumination' .* Got 'yes'"),
        ({"device": "abacus"}, r"device='abacus' cannot be used here .*Pass \"auto\""),
        ({"precision": "float8"}, r"'precision' .* Got 'float8'"),
        ({"random_state": "seed"}, r"'random_state' .* Got 'seed'"),
        ({"training": "adversarial"}, r"'training' .* Got 'adversarial'"),
        ({"detector": UNet()}, r"'detector' .* Got UNet\(\)"),
        ({"inpainter": PatchNet()}, r"'inpainter' .* Got PatchNet\(\)"),
        ({"training__max_steps": -1}, r"'max_steps' .* of MaskedInpainting .* Got -1"),
        ({"training__batch_size": 1}, r"'batch_size' .* Got 1"),
        ({"training__learning_rates": (1e-3,)}, r"learning_rates must be two .* got \(0.001,\)"),
        ({"training__learning_rates": (1e-3, -1)}, r"learning_rates .* at least 0, got"),
        ({"training__learning_rates": 1e-3}, r"'learning_rates' .* Got 0.001"),
        ({"training__optimizer": "newton"}, r"'optimizer' .* Got 'newton'"),
        ({"training__schedule": "linear"}, r"'schedule' .* Got 'linear'"),
        ({"training__detector_every": 0}, r"'detector_every' .* Got 0"),
        ({"training__reconstruction_weight": -1}, r"'reconstruction_weight' .* Got -1"),
        ({"training__adversarial_weight": -1}, r"'adversarial_weight' .* Got -1"),
        ({"training__hidden_fraction": 0}, r"'hidden_fraction' .* Got 0"),
        ({"training__exchanged_fraction": 1.5}, r"'exchanged_fraction' .* Got 1.5"),
        ({"training__averaging_decay": 1}, r"'averaging_decay' .* Got 1"),
        ({"training__block_sizes": ()}, r"block_sizes .* of at least 0.01, got \(\)"),
        ({"training__block_sizes": (0.5, -1)}, r"block_sizes .* got \(0.5, -1\)"),
        ({"training": AdversarialInpainting(gamma=0)}, r"'gamma' .* Got 0"),
        ({"inpainter__channels": 0}, r"'channels' .* of UNet .* Got 0"),
        ({"inpainter__multipliers": ()}, r"multipliers of UNet .* got \(\)"),
        ({"inpainter__multipliers": (1, 0.01)}, r"multipliers of UNet .* got \(1, 0.01\)"),
        ({"inpainter__first_skip": -1}, r"'first_skip' .* Got -1"),
        ({"detector__channels": 0}, r"'channels' .* of PatchNet .* Got 0"),
        ({"detector__layers": ((1, 2),)}, r"sequence of \(multiplier, kernel, stride\)"),
        (
            {"detector__layers": ((1, 0, 1),)},
            r"least one channel, and integer kernel .* got \(\(1, 0, 1\),\)",
        ),
        ({"detector__normalize": "yes"}, r"'normalize' .* Got 'yes'"),
        ({"detector__negative_slope": -1}, r"'negative_slope' .* Got -1"),
        ({"detector__region_pixels": (20, 12)}, r"the smaller first; got \(20, 12\)"),
    ],
    ids=str,
)
def test_bad_parameters(X, params, message):
    with pytest.raises(ValueError, match=message):
        make_detector("images", **params).fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"training__far_fraction": 2}, r"'far_fraction' .* of CellInpainting .* Got 2"),
        ({"training__hidden_fraction": 0.6}, r"'hidden_fraction' .* \(0.0, 0.5\]\. Got 0.6"),
        ({"inpainter": CellNetwork((8, 0))}, r"hidden_layer_sizes .* integers .* got \(8, 0\)"),
        ({"detector": CellNetwork((2.5,))}, r"hidden_layer_sizes .* got \(2.5,\)"),
        ({"region_size": 8}, "region_size=8 is for images, but X is a table"),
        ({"normalize_illumination": True}, "normalize_illumination=True is for images"),
    ],
    ids=str,
)
def test_bad_parameters_of_tables(table, params, message):
    with pytest.raises(ValueError, match=message):
        make_detector("table", **params).fit(table)


@pytest.mark.parametrize(
    ("part", "right"),
    [
        ({"training": MaskedInpainting()}, "CellInpainting"),
        ({"inpainter": UNet()}, "CellNetwork"),
        ({"detector": PatchNet()}, "CellNetwork"),
    ],
    ids=str,
)
def test_parts_for_images_are_refused_on_tables(table, part, right):
    message = rf"not for tables: pass {right}\(\.\.\.\), or image_shape if the rows are pixels"
    with pytest.raises(ValueError, match=message):
        AVIDDetector(**part).fit(table)


@pytest.mark.parametrize(
    ("part", "right"),
    [
        ({"training": CellInpainting()}, "MaskedInpainting"),
        ({"inpainter": CellNetwork()}, "UNet"),
        ({"detector": CellNetwork()}, "PatchNet"),
    ],
    ids=str,
)
def test_parts_for_tables_are_refused_on_images(X, part, right):
    with pytest.raises(ValueError, match=rf"not for images: pass {right}\(\.\.\.\)\."):
        AVIDDetector(**part).fit(X)


def test_the_paper_knows_two_kinds_of_data():
    with pytest.raises(ValueError, match=r'data must be "images" or "tables", got \'videos\''):
        AVIDDetector.from_paper("videos")


# Failures


@ON_BOTH
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_failed_fit_changes_nothing(X, table, kind, warm_start, monkeypatch):
    X = X if kind.endswith("images") else table
    detector = fit(X, kind, warm_start=warm_start)
    drawn, before = detector.anomaly_map(X), vars(detector).copy()

    def fail(self, X, scores):
        raise ZeroDivisionError  # once the networks have been trained

    with monkeypatch.context() as patched:
        patched.setattr(AVIDDetector, "_set_threshold", fail)
        with pytest.raises(ZeroDivisionError):
            detector.fit(2 * X[:12])
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.where(X > 1, np.nan, X))
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in before)
    np.testing.assert_array_equal(detector.anomaly_map(X), drawn)
    if warm_start:
        assert detector.fit(X).n_iter_ == 2 * detector.training_.max_steps


@pytest.mark.parametrize("kind", ["images", "table"])
def test_a_failed_first_fit_leaves_nothing_behind(X, table, kind, monkeypatch):
    def fail(self, X, scores):
        raise ZeroDivisionError

    monkeypatch.setattr(AVIDDetector, "_set_threshold", fail)
    detector = make_detector(kind)
    before = set(vars(detector))
    with pytest.raises(ZeroDivisionError):
        detector.fit(X if kind == "images" else table)
    assert set(vars(detector)) == before


@ON_BOTH
def test_divergence_names_the_remedy_and_keeps_the_former_state(X, table, kind):
    X = X if kind.endswith("images") else table
    detector = fit(X, kind)
    drawn = detector.anomaly_map(X)
    detector.set_params(training__learning_rates=(1e30, 1e30), training__max_steps=10)
    with pytest.raises(TrainingDivergedError, match=r"within steps 1 to 10.* Lower .*rates"):
        detector.fit(2 * X)
    np.testing.assert_array_equal(detector.anomaly_map(X), drawn)
