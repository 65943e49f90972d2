"""What AVIDDetector takes and refuses: shapes, dtypes, odd values, too few of anything."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.utils import get_tags

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import _models as _players
from sklearn_g2d.errors import TrainingDivergedError

IMAGES = {"region_size": 12, "width": 2, "batch_size": 4, "max_steps": 2, "random_state": 0}
PAPER_IMAGES = {**IMAGES, "recipe": "paper", "region_size": 20}
TABLE = {"batch_size": 16, "max_steps": 3, "random_state": 0}
PAPER_TABLE = {**TABLE, "recipe": "paper"}

ON_IMAGES = pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES], ids=["default", "paper"])
ON_TABLES = pytest.mark.parametrize("params", [TABLE, PAPER_TABLE], ids=["default", "paper"])


@pytest.fixture(scope="module", autouse=True)
def _short_batches():
    """Small images are scored a hundred at once, and a batch of one is filled up to that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_players, "_SCORING_PIXELS", 4 * 24 * 24)
        yield


def textures(n, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).cumsum(axis=-1)


@pytest.fixture
def X():
    return textures(14, (1, 24, 24))


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(40, 4))


def fit(X, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return AVIDDetector(**params).fit(X)


def maps_of(X, X_test=None, **params):
    """Maps, all of whose kinds and whose scores have been found finite."""
    detector = fit(X, **params)
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
def test_maps_have_exactly_the_size_of_the_images(params, shape):
    X = textures(12, shape)
    said = {"image_shape": shape} if shape[0] == 2 else {}
    detector = fit(X, **{**params, "region_size": None, **said})
    assert detector.image_shape_ == shape
    assert detector.region_size_ == max(min(shape[1:]) // 8, min(8, -(-min(shape[1:]) // 2)))
    for method in (detector.anomaly_map, detector.predict_mask):
        drawn = method(X[:3])
        assert drawn.shape == (3, *shape[1:])
    assert detector.inpaint(X[:3]).shape == (3, *shape)
    drawn = detector.set_params(map="inpainter").anomaly_map(X)
    assert np.isfinite(drawn).all()
    assert (np.ptp(drawn, axis=0) > 0).all()  # no pixel is left out


@ON_IMAGES
@pytest.mark.parametrize("region_size", [3, 24])
def test_any_region_size_up_to_the_image(X, params, region_size):
    detector = fit(X, **{**params, "region_size": region_size})
    assert detector.region_size_ == region_size
    step = region_size // 2
    n = (24 - region_size) // step + 1
    assert detector.region_scores(X).shape == (14, n, n)
    detector.set_params(map="inpainter")
    assert len(np.unique(detector.score_samples(X))) == 14


@ON_IMAGES
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 1, 20)])
def test_tiny_images(params, shape):
    X = np.random.default_rng(0).normal(size=(5, *shape))
    assert maps_of(X, **{**params, "region_size": None}).shape == (5, *shape[1:])


@ON_IMAGES
def test_images_too_large_for_one_canvas(params):
    X = textures(4, (1, 200, 150))
    detector = fit(X, **{**params, "region_size": None})
    assert detector.region_size_ == 18
    assert detector.anomaly_map(X[:2]).shape == (2, 200, 150)
    assert detector.inpaint(X[:1]).shape == (1, 1, 200, 150)


@ON_IMAGES
def test_large_images_are_scaled_down(params):
    X = textures(3, (1, 512, 512))
    detector = fit(X, **{**params, "region_size": None, "max_steps": 1})
    assert detector.region_size_ == 64
    assert detector.region_scores(X[:2]).shape == (2, 15, 15)
    drawn = detector.anomaly_map(X[:2])
    assert drawn.shape == (2, 512, 512)
    assert np.isfinite(drawn).all()


@ON_TABLES
@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 6, 23])
def test_maps_of_tables_have_their_shape(params, n_features):
    X = np.random.default_rng(0).normal(size=(20, n_features))
    detector = fit(X, **params)
    assert detector.image_shape_ is None
    for method in (detector.anomaly_map, detector.predict_mask, detector.inpaint):
        assert method(X[:3]).shape == (3, n_features)
    drawn = detector.anomaly_map(X)
    assert (np.ptp(drawn, axis=0) > 0).all()


@ON_IMAGES
def test_rows_of_pixels_are_judged_like_images(X, params):
    rows = X.reshape(14, -1)
    images = fit(X, **params)
    by_rows = fit(rows, image_shape=[1, 24, 24], **params)
    expected = images.anomaly_map(X)
    for detector in (images, by_rows):
        assert detector.image_shape_ == (1, 24, 24)
        assert detector.n_features_in_ == 576
        for x in (X, rows):
            np.testing.assert_array_equal(detector.anomaly_map(x), expected)
    as_table = fit(rows, **TABLE)
    assert as_table.image_shape_ is None
    assert as_table.anomaly_map(rows).shape == (14, 576)


def test_tags_tell_of_images():
    tags = get_tags(AVIDDetector()).input_tags
    assert tags.two_d_array
    assert tags.three_d_array


# Values


@ON_IMAGES
def test_bytes_and_floats_are_judged_alike(params):
    X = np.random.default_rng(0).integers(256, size=(12, 3, 24, 24), dtype=np.uint8)
    params = {**params, "precision": "float32"}
    expected = maps_of(X, **params)
    np.testing.assert_array_equal(maps_of(X.astype(float), **params), expected)
    for changed in (X.astype(np.float32), X / 255, 1e3 * X - 7):
        np.testing.assert_allclose(maps_of(changed, **params), expected, atol=1e-3)


@ON_TABLES
def test_units_of_a_table_change_nothing(table, params):
    rng = np.random.default_rng(1)
    new = 3 * rng.normal(size=(20, 4))
    scale, shift = np.array([1e30, 1e-30, 255, 3]), np.array([0, 0, 100, -5])
    expected = maps_of(table, new, **params)
    changed = maps_of(scale * table + shift, scale * new + shift, **params)
    np.testing.assert_allclose(changed, expected, atol=1e-3)


@ON_IMAGES
def test_units_of_intensity_change_nothing(X, params):
    params = {**params, "precision": "float32"}
    expected = maps_of(X, **params)
    for scale in (1e30, 1e-30):
        np.testing.assert_allclose(maps_of(scale * X, **params), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
@ON_TABLES
def test_dtypes(params, dtype):
    maps_of(np.random.default_rng(0).integers(0, 2, size=(30, 6)).astype(dtype), **params)


@ON_IMAGES
def test_memory_layout_does_not_matter(X, params, tmp_path):
    expected = maps_of(X, **params)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    channels_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)
    for images in (mapped, channels_last):
        np.testing.assert_array_equal(maps_of(images, **params), expected)


@ON_IMAGES
def test_wild_pixels_stay_finite(X, params):
    detector = fit(X, **params)
    wild = np.repeat(X[:1], 4, axis=0)
    wild[:, 0, 12, 12] = [1e5, 1e30, 1e300, -1.7e308]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (detector.score_samples, detector.anomaly_map, detector.inpaint):
            assert np.isfinite(method(wild)).all()


@pytest.mark.parametrize("value", [1e30, -1.7e308])
@ON_TABLES
def test_a_wild_value_is_irregular(table, params, value):
    wild = table[:1].copy()
    wild[0, 2] = value
    detector = fit(table, **{**params, "max_steps": 100, "map": "inpainter"})
    drawn = detector.anomaly_map(np.concatenate([table, wild]))
    assert np.isfinite(drawn).all()
    assert drawn[-1].argmax() == 2
    assert drawn[-1, 2] > drawn[:-1].max()
    assert np.isfinite(detector.set_params(map="combined").score_samples(wild)).all()


@ON_IMAGES
def test_a_wild_pixel_in_training(X, params):
    X[3, 0, 5, 5] = 1e30
    drawn = maps_of(X, **params)
    assert drawn[3].max() == drawn.max()


@ON_IMAGES
def test_pixels_beyond_a_variance(X, params):
    X[3, 0, 5, 5] = 1e300
    with pytest.raises(ValueError, match=r"values up to 1e\+300.* Rescale"):
        fit(X, **params)


@ON_TABLES
def test_values_beyond_a_variance(table, params):
    table[7, 2] = 1e300
    with pytest.raises(ValueError, match=r"Column 2 holds values up to 1e\+300.* Rescale"):
        fit(table, **params)


# Too little to learn from


@ON_IMAGES
@pytest.mark.parametrize("n", [2, 9])
def test_very_few_images(X, params, n):
    maps_of(X[:n], X, **params)


@ON_TABLES
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_very_few_rows(table, params, n):
    maps_of(table[:n], table, **params)


@pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES, TABLE, PAPER_TABLE])
@pytest.mark.parametrize("value", [0, 7])
def test_samples_all_alike(params, value):
    shape = (12, 1, 24, 24) if "width" in params else (12, 4)
    X = np.full(shape, value, dtype=np.uint8)
    other = X[:1].copy()
    other[..., 2:10] += 9
    detector = AVIDDetector(**params)
    with pytest.warns(UserWarning, match="All training samples are alike") as caught:
        detector.fit(X)
    assert caught[0].filename == __file__
    scores = detector.score_samples(np.concatenate([X, other]))
    assert np.isfinite(scores).all()
    assert np.isfinite(detector.anomaly_map(other)).all()
    assert np.isfinite(detector.inpaint(other)).all()
    detector.set_params(map="inpainter")
    same, changed = detector.score_samples(np.concatenate([X[:1], other]))
    assert changed < same


@ON_IMAGES
def test_one_image_many_times(X, params):
    with pytest.warns(UserWarning, match="All training samples are alike"):
        detector = AVIDDetector(**params).fit(np.repeat(X[:1], 12, axis=0))
    assert np.isfinite(detector.score_samples(X)).all()


@ON_IMAGES
def test_flat_images_of_different_brightness(params):
    X = np.arange(12.0)[:, None, None, None] * np.ones((1, 24, 24))
    maps_of(X, textures(3, (1, 24, 24)), **params)


def test_a_constant_column_counts_once_it_changes(table):
    X = np.column_stack([table, np.full(len(table), 7.0)])
    changed = X[:1].copy()
    changed[0, -1] = 17.0
    drawn = maps_of(X, np.concatenate([X, changed]), **{**TABLE, "max_steps": 100})
    assert drawn[-1].argmax() == 4
    assert drawn[-1, 4] > drawn[:-1].max()


@ON_TABLES
@pytest.mark.parametrize("columns", [[0], [0, 0, 0]], ids=["one", "duplicates"])
def test_one_column_and_duplicate_columns(table, params, columns):
    maps_of(table[:, columns], **params)


def test_per_location_of_few_images(X):
    for n in (2, 14):
        maps_of(X[:n], X, per_location=True, **IMAGES)


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
        AVIDDetector(**{**IMAGES, **params}).fit(bad(X))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: np.where(X > 2, np.nan, X), "contains NaN"),
        (lambda X: sparse.csr_array(X), "Sparse data was passed"),
        (lambda X: X.astype(str).astype(object) + "cm", "could not convert string to float"),
        (lambda X: X[:1], "1 sample.* while a minimum of 2 is required"),
        (lambda X: X[:, :0], "0 feature"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
    ],
)
def test_bad_training_rows(table, bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AVIDDetector(**TABLE).fit(bad(table))


@ON_IMAGES
def test_bad_images_to_judge(X, params):
    detector = fit(X, **params)
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
    detector = fit(X, **IMAGES)
    assert detector.region_size_ == 12
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
        ({"recipe": "papers"}, r"'recipe' .* Got 'papers'"),
        ({"region_size": 1}, r"'region_size' .* Got 1"),
        ({"region_size": 8.0}, r"'region_size' .* Got 8.0"),
        ({"corruption": "salt"}, r"'corruption' .* Got 'salt'"),
        ({"noise_scale": 0}, r"'noise_scale' .* Got 0"),
        ({"reconstruction_weight": -1}, r"'reconstruction_weight' .* Got -1"),
        ({"adversarial_weight": -1}, r"'adversarial_weight' .* Got -1"),
        ({"map": "both"}, r"'map' .* Got 'both'"),
        ({"per_location": "yes"}, r"'per_location' .* Got 'yes'"),
        ({"max_steps": -1}, r"'max_steps' .* Got -1"),
        ({"batch_size": 1}, r"'batch_size' .* Got 1"),
        ({"n_estimators": 0}, r"'n_estimators' .* Got 0"),
        ({"width": 1}, r"'width' .* Got 1"),
        ({"device": "abacus"}, r"device='abacus' cannot be used here .*Pass \"auto\""),
        ({"precision": "float8"}, r"'precision' .* Got 'float8'"),
        ({"random_state": "seed"}, r"'random_state' .* Got 'seed'"),
    ],
)
def test_bad_parameters(X, params, message):
    with pytest.raises(ValueError, match=message):
        AVIDDetector(**{**IMAGES, **params}).fit(X)


# Failures


@pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES, TABLE, PAPER_TABLE])
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_failed_fit_changes_nothing(X, table, params, warm_start, monkeypatch):
    X = X if "width" in params else table
    detector = fit(X, **params, warm_start=warm_start)
    drawn, before = detector.anomaly_map(X), vars(detector).copy()

    def fail(self, X, maps):
        raise ZeroDivisionError  # once the networks have been trained

    with monkeypatch.context() as patched:
        patched.setattr(AVIDDetector, "_learn_thresholds", fail)
        with pytest.raises(ZeroDivisionError):
            detector.fit(2 * X[:12])
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.where(X > 1, np.nan, X))
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in before)
    np.testing.assert_array_equal(detector.anomaly_map(X), drawn)
    if warm_start:
        assert detector.fit(X).n_iter_ == 2 * params["max_steps"]


@pytest.mark.parametrize("params", [IMAGES, TABLE], ids=["images", "table"])
def test_a_failed_first_fit_leaves_nothing_behind(X, table, params, monkeypatch):
    def fail(self, X, maps):
        raise ZeroDivisionError

    monkeypatch.setattr(AVIDDetector, "_learn_thresholds", fail)
    detector = AVIDDetector(**params)
    before = set(vars(detector))
    with pytest.raises(ZeroDivisionError):
        detector.fit(X if "width" in params else table)
    assert set(vars(detector)) == before


@pytest.mark.parametrize("params", [IMAGES, PAPER_IMAGES, TABLE, PAPER_TABLE])
def test_divergence_names_the_remedy_and_keeps_the_former_state(X, table, params):
    X = X if "width" in params else table
    detector = fit(X, **params)
    drawn = detector.anomaly_map(X)
    detector.set_params(reconstruction_weight=1e60, max_steps=10)
    with pytest.raises(
        TrainingDivergedError, match=r"reconstruction_loss became infinite or NaN .* Lower"
    ):
        detector.fit(2 * X)
    np.testing.assert_array_equal(detector.anomaly_map(X), drawn)
