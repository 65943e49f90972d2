"""G2DOutlierDetector on images: what it detects, takes, refuses and generates."""

import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.features import OrientedGradients
from sklearn_g2d.g2d._recipes import G2D_IMAGE_RECIPES, G2D_RECIPES
from sklearn_g2d.metrics import SCORERS, outlier_roc_auc_score
from sklearn_g2d.model_selection import NormalOnlySplit

FAST = {"max_steps": 5, "n_estimators": 4, "random_state": 0}
RAW = {**FAST, "features": "raw"}
PAPER = {"recipe": "paper", "max_steps": 5, "width": 4, "batch_size": 16, "random_state": 0}
BOTH_RECIPES = pytest.mark.parametrize("params", [FAST, PAPER], ids=["default", "paper"])
ALL_WAYS = pytest.mark.parametrize("params", [FAST, RAW, PAPER], ids=["default", "raw", "paper"])


# Training of the classifier has no parameter, and the paper's takes two seconds a fit.
LONG = [(recipes, dict(recipes)) for recipes in (G2D_RECIPES, G2D_IMAGE_RECIPES)]


def train_classifiers_for(n_steps, monkeypatch):
    for recipes, long in LONG:
        for name, recipe in long.items():
            steps = n_steps or recipe.classifier_steps
            monkeypatch.setitem(recipes, name, replace(recipe, classifier_steps=steps))


@pytest.fixture(scope="module", autouse=True)
def _short_training():
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_classifiers_for(60, monkeypatch)
        yield


@pytest.fixture
def _full_training(monkeypatch):
    train_classifiers_for(None, monkeypatch)


FULL_TRAINING = pytest.mark.usefixtures("_full_training")


@pytest.fixture(scope="module")
def digits():
    """Threes to fit on and to test, as images of shape (n, 1, 8, 8), and other digits."""
    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    threes = images[y == 3]
    return threes[:100], threes[100:], images[y != 3][:300]


@pytest.fixture
def train(digits):
    return digits[0][:60]


@pytest.fixture
def test(digits):
    _, threes, others = digits
    return np.concatenate([threes[:20], others[:20]])


@pytest.fixture(scope="module")
def fitted(digits):
    """Detectors by parameters, fitted on `train` once; not to be changed."""
    detectors = {}

    def fit(params):
        if repr(params) not in detectors:
            detectors[repr(params)] = G2DOutlierDetector(**params).fit(digits[0][:60])
        return detectors[repr(params)]

    return fit


def one_digit(digit, n_others=300):
    """Half of a digit's images to fit on; the others, and other digits, with labels."""
    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    rng = np.random.default_rng(digit)
    normal = rng.permutation(np.flatnonzero(y == digit))
    half = len(normal) // 2
    chosen = np.concatenate([normal[half:], rng.permutation(np.flatnonzero(y != digit))[:n_others]])
    return images[normal[:half]], images[chosen], np.where(y[chosen] == digit, 1, -1)


def score(X, X_test, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = G2DOutlierDetector(**params).fit(X).score_samples(X_test)
    assert np.isfinite(scores).all()
    return scores


# Detection


def compare_on_digit(digit, **params):
    """AUC of the detector, of the distance to the fifth neighbour and of a forest; rates."""
    X, X_test, y = one_digit(digit)
    rows, rows_test = X.reshape(len(X), -1), X_test.reshape(len(X_test), -1)
    detector = G2DOutlierDetector(random_state=0, **params).fit(X)
    distances, _ = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors(rows_test)
    forest = IsolationForest(random_state=0).fit(rows)
    scores = detector.score_samples(X_test), -distances[:, -1], forest.score_samples(rows_test)
    is_flagged = detector.predict(X_test) == -1
    return [
        *(outlier_roc_auc_score(y, s) for s in scores),
        is_flagged[y == 1].mean(),
        is_flagged[y == -1].mean(),
    ]


@FULL_TRAINING
@pytest.mark.parametrize("digit", [3, 8])
def test_detects_other_digits(digit):
    ours, neighbors, forest, false_alarms, found = compare_on_digit(digit)
    assert ours > neighbors
    assert ours > forest
    assert ours > 0.98
    assert false_alarms < 0.15
    assert found > 0.7


def test_detects_other_digits_on_average():
    results = [compare_on_digit(digit, max_steps=0) for digit in range(10)]
    ours, neighbors, forest, false_alarms, found = np.mean(results, axis=0)
    assert ours > neighbors
    assert ours > forest
    assert ours > 0.99
    assert 0.005 < false_alarms < 0.1
    assert found > 0.9


@FULL_TRAINING
@pytest.mark.parametrize("params", [FAST, RAW], ids=["default", "raw"])
def test_one_odd_channel_is_enough(params):
    rng = np.random.default_rng(0)
    stripes = np.tile(np.sin(np.arange(12) * np.pi / 2), (12, 1))
    X = rng.normal(size=(120, 3, 12, 12)) + 3 * stripes
    odd = X[100:].copy()
    odd[:, 1] += 6 * stripes.T
    scores = score(X[:100], np.concatenate([X[100:], odd]), **params)
    assert scores[:20].min() > scores[20:].max()


# Shapes


@ALL_WAYS
def test_rows_of_pixels_score_like_images(fitted, train, test, params):
    images = fitted(params)
    rows = G2DOutlierDetector(image_shape=[1, 8, 8], **params).fit(train.reshape(-1, 64))
    expected = images.score_samples(test)
    for detector in (images, rows):
        assert detector.image_shape_ == (1, 8, 8)
        assert detector.n_features_in_ == 64
        assert not hasattr(detector, "feature_names_in_")
        np.testing.assert_array_equal(detector.score_samples(test), expected)
        np.testing.assert_array_equal(detector.score_samples(test.reshape(-1, 64)), expected)
    assert len(np.unique(expected)) == len(expected)
    as_table = G2DOutlierDetector(**{**params, "width": None}).fit(train.reshape(-1, 64))
    assert as_table.image_shape_ is None
    assert np.abs(as_table.score_samples(test.reshape(-1, 64)) - expected).max() > 0.01


def test_image_shape_may_say_what_the_images_say(fitted, train, test):
    scores = score(train, test, **FAST, image_shape=(1, 8, 8))
    np.testing.assert_array_equal(scores, fitted(FAST).score_samples(test))


def test_image_shape_may_be_an_array(train):
    detector = G2DOutlierDetector(image_shape=np.array([1, 8, 8]), **FAST).fit(train)
    assert detector.image_shape_ == (1, 8, 8)


def test_tags_tell_of_images():
    tags = get_tags(G2DOutlierDetector()).input_tags
    assert tags.two_d_array
    assert tags.three_d_array


def test_frames_of_pixels_keep_their_names(fitted, train, test):
    names = [f"pixel{i}" for i in range(64)]
    frame, frame_test = (pd.DataFrame(x.reshape(-1, 64), columns=names) for x in (train, test))
    detector = G2DOutlierDetector(image_shape=(1, 8, 8), **FAST).fit(frame)
    assert list(detector.feature_names_in_) == names
    assert detector.image_shape_ == (1, 8, 8)
    expected = fitted(FAST).score_samples(test)
    np.testing.assert_array_equal(detector.score_samples(frame_test), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(frame_test[names[::-1]])


def test_lists_and_tensors_are_arrays(fitted, train, test):
    expected = fitted(FAST).score_samples(test)
    for convert in (np.ndarray.tolist, torch.tensor):
        np.testing.assert_array_equal(score(convert(train), convert(test), **FAST), expected)


@ALL_WAYS
def test_memory_layout_does_not_matter(fitted, train, test, params):
    expected = fitted(params).score_samples(test)
    train.setflags(write=False)

    def twice_reversed(x):
        return x[:, :, ::-1].copy()[:, :, ::-1]

    def formerly_channels_last(x):
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)

    def every_second(x):
        return np.repeat(x, 2, axis=0)[::2]

    for lay_out in (twice_reversed, formerly_channels_last, every_second):
        changed, changed_test = lay_out(train), lay_out(test)
        np.testing.assert_array_equal(changed, train)
        np.testing.assert_array_equal(score(changed, changed_test, **params), expected)
    rows, rows_test = (np.asfortranarray(x.reshape(-1, 64)) for x in (train, test))
    scores = score(rows, rows_test, **params, image_shape=(1, 8, 8))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-10)


@ALL_WAYS
def test_colour_images_in_a_foreign_layout(params):
    X = np.random.default_rng(0).normal(size=(30, 8, 9, 3))  # channels last
    X.setflags(write=False)
    images = np.moveaxis(X, -1, 1)
    expected = score(images.copy(), images.copy(), **params)
    np.testing.assert_array_equal(score(images, images, **params), expected)
    rows = images.reshape(30, -1)
    scores = score(rows, rows, **params, image_shape=(3, 8, 9))
    np.testing.assert_array_equal(scores, expected)


@ALL_WAYS
def test_memory_map_of_bytes(fitted, train, test, tmp_path, params):
    expected = fitted(params).score_samples(test)
    for name, images in (("train", train), ("test", test)):
        mapped = np.lib.format.open_memmap(
            tmp_path / f"{name}.npy", mode="w+", dtype=np.uint8, shape=images.shape
        )
        mapped[:] = images
        mapped.flush()
    mapped, mapped_test = (
        np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("train", "test")
    )
    assert isinstance(mapped, np.memmap)
    np.testing.assert_allclose(score(mapped, mapped_test, **params), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("params", "dtype"),
    [
        (FAST, np.uint8),
        (FAST, np.float32),
        (RAW, np.uint8),  # whose components depend on the precision
        (PAPER, np.uint8),
        (PAPER, np.float32),
    ],
)
def test_bytes_score_like_floats(fitted, train, test, params, dtype):
    detector = G2DOutlierDetector(**params).fit(train.astype(dtype))
    expected = fitted(params).score_samples(test)
    np.testing.assert_allclose(detector.score_samples(test.astype(dtype)), expected, atol=1e-7)
    np.testing.assert_allclose(detector.score_samples(test), expected, atol=1e-7)


@BOTH_RECIPES
def test_units_of_intensity_change_nothing(fitted, train, test, params):
    expected = fitted(params).score_samples(test)
    for factor in (1e30, 1e-30):
        rescaled = score(factor * train, factor * test, **params)
        np.testing.assert_allclose(rescaled, expected, atol=1e-3)


@ALL_WAYS
def test_a_score_does_not_depend_on_its_batch(fitted, digits, params):
    detector = fitted(params)
    X = digits[2][:270]  # more than are scored at once by convolutions
    together = detector.score_samples(X)
    alone = np.concatenate([detector.score_samples(image[None]) for image in X[::9]])
    np.testing.assert_allclose(alone, together[::9], rtol=0, atol=1e-7)
    reverse = detector.score_samples(X[::-1])[::-1]
    np.testing.assert_allclose(reverse, together, rtol=0, atol=1e-7)


@BOTH_RECIPES
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 12, 20), (1, 33, 17), (3, 9, 8)])
def test_sizes(params, shape):
    X = np.random.default_rng(0).normal(size=(20, *shape)).cumsum(axis=-1)
    detector = G2DOutlierDetector(**params).fit(X)
    assert detector.image_shape_ == shape
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 20


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 3, 2), (2, 4, 5)])
@pytest.mark.parametrize("params", [RAW, PAPER], ids=["raw", "paper"])
def test_tiny_images(params, shape):
    X = np.random.default_rng(0).normal(size=(30, *shape))
    assert len(np.unique(score(X, X, **params))) == 30
    assert G2DOutlierDetector(**params).fit(X).sample_outliers(3).shape == (3, *shape)


@BOTH_RECIPES
@pytest.mark.parametrize("n", [2, 3, 5])
def test_very_few_images(train, test, params, n):
    score(train[:n], test, **params)


@BOTH_RECIPES
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_nothing_but_a_constant(params, dtype):
    X = np.full((20, 1, 8, 8), 7, dtype=dtype)
    changed = X[:1].copy()
    changed[0, 0, :, 4:] = 9
    same, other = score(X, np.concatenate([X[:1], changed]), **params)
    assert same > other


# Refusals


@pytest.mark.parametrize(
    ("params", "bad", "message"),
    [
        ({}, lambda x: np.moveaxis(x, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        ({}, lambda x: x[:, 0], r"X has shape \(60, 8, 8\), of dim 3.*pass X\[:, np.newaxis\]"),
        ({}, lambda x: x[None], "dim 5"),
        ({}, lambda x: x[:, :, :2, :2], '8 x 8 pixels, got 2 x 2.*features="raw"'),
        ({}, lambda x: x[:1], "1 sample.* while a minimum of 2 is required"),
        ({}, lambda x: x[:0], "0 sample.* while a minimum of 2 is required"),
        ({}, lambda x: np.where(x == 16, np.nan, x), "contains NaN"),
        ({}, lambda x: np.where(x == 16, np.inf, x), "contains infinity"),
        (PAPER, lambda x: np.where(x == 16, np.nan, x), "contains NaN"),
        (PAPER, lambda x: x[:, :, :1], 'at least 2 x 2 pixels, got 1 x 8.*features="raw"'),
        ({"image_shape": (8, 8)}, lambda x: x, r"three positive integers.* got \(8, 8\)"),
        ({"image_shape": (1, 0, 8)}, lambda x: x, r"three positive integers.* got \(1, 0, 8\)"),
        ({"image_shape": (1, 8.0, 8)}, lambda x: x, r"three positive integers.* got \(1, 8.0"),
        ({"image_shape": 64}, lambda x: x, "'image_shape' parameter .* Got 64"),
        (
            {"image_shape": (1, 4, 16)},
            lambda x: x,
            r"X has image shape \(1, 8, 8\), but .* was given image_shape=\(1, 4, 16\)",
        ),
        (
            {"image_shape": (3, 8, 8)},
            lambda x: np.moveaxis(np.repeat(x, 3, 1), 1, -1),
            "np.moveaxis",
        ),
        (
            {"image_shape": (1, 8, 8)},
            lambda x: x.reshape(60, 64)[:, :60],
            r"X has 60 features, but image_shape=\(1, 8, 8\) asks for 64",
        ),
        (
            {},
            lambda x: pd.DataFrame({"id": 1, "image": list(x)})[["image"]],
            r"cells of X\['image'\] hold whole images.* pass np.stack\(list\(X\['image'\]\)\)",
        ),
        (
            {},
            lambda x: np.fromiter(list(x), dtype=object),
            r"cells of X hold whole images.* pass np.stack\(list\(X\)\)",
        ),
        (
            {"features": "oriented_gradients"},
            lambda x: x.reshape(60, 64),
            "describes images, but X is a table.* or set image_shape",
        ),
    ],
)
def test_bad_training_images(train, params, bad, message):
    with pytest.raises(ValueError, match=message):
        G2DOutlierDetector(**{**FAST, **params}).fit(bad(train))


@BOTH_RECIPES
def test_bad_images_to_score(fitted, test, params):
    detector = fitted(params)
    for bad, message in [
        (np.repeat(test, 3, axis=1), r"image shape \(3, 8, 8\), but .* fitted on \(1, 8, 8\)"),
        (test[..., :7], r"X has image shape \(1, 8, 7\), but .* was fitted on \(1, 8, 8\)"),
        (np.moveaxis(test, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        (test[:, 0], r"of dim 3.* pass X\[:, np.newaxis\]"),
        (test.reshape(-1, 64)[:, :60], "X has 60 features, but .* is expecting 64 features"),
        (pd.DataFrame({"image": list(test)}), r"pass np.stack\(list\(X\['image'\]\)\)"),
        (np.where(test == 16, np.nan, test), "contains NaN"),
        (test[0], r"X has shape \(1, 8, 8\), of dim 3"),
    ]:
        for method in (detector.score_samples, detector.predict, detector.p_values):
            with pytest.raises(ValueError, match=message):
                method(bad)


@BOTH_RECIPES
def test_no_image_to_score(fitted, test, params):
    with pytest.raises(ValueError, match="0 sample"):
        fitted(params).predict(test[:0])


def test_channels_last_is_told_from_a_wrong_size_by_what_was_fitted():
    X = np.random.default_rng(0).normal(size=(20, 5, 8, 9))  # five channels: no usual number
    detector = G2DOutlierDetector(**RAW).fit(X)
    with pytest.raises(ValueError, match=r"np.moveaxis\(X, -1, 1\)"):
        detector.predict(np.moveaxis(X, 1, -1))
    with pytest.raises(ValueError, match=r"image shape \(5, 9, 8\), but .* fitted on \(5, 8, 9\)"):
        detector.predict(X.swapaxes(2, 3))


def test_an_unusual_number_of_channels_is_believed_once_said():
    X = np.random.default_rng(0).normal(size=(20, 2, 5, 4))
    with pytest.raises(ValueError, match="channels last"):
        G2DOutlierDetector(**RAW).fit(X)
    detector = G2DOutlierDetector(image_shape=(2, 5, 4), **RAW).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_table_is_no_image(train):
    detector = G2DOutlierDetector(**FAST).fit(train.reshape(-1, 64))
    assert detector.image_shape_ is None
    with pytest.raises(ValueError, match=r"image shape \(1, 8, 8\), but .* on rows of a table"):
        detector.predict(train)
    assert detector.fit(train).image_shape_ == (1, 8, 8)
    assert detector.fit(train.reshape(-1, 64)).image_shape_ is None


@pytest.mark.parametrize("value", [1e5, 1e30, 1e300])
@ALL_WAYS
def test_a_wild_pixel_is_an_outlier(fitted, train, params, value):
    wild = train[:1].copy()
    wild[0, 0, 4, 4] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = fitted(params).score_samples(np.concatenate([train, wild]))
    assert np.isfinite(scores).all()
    if params is not PAPER:
        assert scores[-1] < scores[:-1].min()


@ALL_WAYS
def test_a_failed_fit_changes_nothing(fitted, train, test, params):
    detector = copy.copy(fitted(params))
    scores, before = detector.score_samples(test), vars(detector).copy()
    for bad, message in [
        (np.where(train == 16, np.nan, train), "NaN"),
        (train[:1], "1 sample"),
        (train[:, 0], "dim 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            detector.fit(bad)
    detector.set_params(features=lambda images: 0.0)  # fails when shapes have been learned
    with pytest.raises(ValueError, match="features returned"):
        detector.fit(np.repeat(train, 3, axis=1)[..., :9])
    detector.set_params(features=params.get("features"))
    assert detector.image_shape_ == (1, 8, 8)
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in before)
    np.testing.assert_array_equal(detector.score_samples(test), scores)


@BOTH_RECIPES
def test_a_failed_first_fit_leaves_nothing_behind(train, params):
    detector = G2DOutlierDetector(**{**params, "features": lambda images: 0.0})
    before = set(vars(detector))
    with pytest.raises(ValueError, match="features returned"):
        detector.fit(train)
    assert set(vars(detector)) == before


# Features


@BOTH_RECIPES
def test_callable_features_are_given_images(digits, params):
    seen = []

    def halves(images):
        seen.append(images.shape)
        return images.mean(axis=-1)

    train, test, others = digits
    detector = G2DOutlierDetector(**{**params, "features": halves}).fit(others)
    detector.score_samples(test[:1])
    detector.score_samples(train.reshape(-1, 64))
    assert {shape[1:] for shape in seen} == {(1, 8, 8)}
    assert max(shape[0] for shape in seen) == 256
    for n in (44, 1, 100):  # 300 = 256 + 44
        assert (n, 1, 8, 8) in seen


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: 1.0, r"shape \(\) for 60 samples; it must return a row of features for each"),
        (lambda x: x[1:].reshape(len(x) - 1, -1), r"shape \(59, 64\) for 60 samples"),
        (lambda x: x.reshape(len(x), -1).T, r"shape \(64, 60\) for 60 samples"),
        (lambda x: np.full((len(x), 2), np.nan), "features returned NaN or infinity"),
    ],
)
@BOTH_RECIPES
def test_bad_callable_features(train, params, features, message):
    with pytest.raises(ValueError, match=message):
        G2DOutlierDetector(**{**params, "features": features}).fit(train)


def test_callable_features_are_checked_when_scoring(train, test):
    detector = G2DOutlierDetector(
        **{**FAST, "features": lambda x: x[:60].reshape(len(x[:60]), -1)}
    ).fit(train)
    with pytest.raises(ValueError, match=r"shape \(60, 64\) for 80 samples"):
        detector.predict(np.concatenate([test, test]))


@BOTH_RECIPES
def test_transformers_are_given_rows(train, test, params):
    seen = []

    def record(rows):
        seen.append(rows.shape)
        return rows

    detector = G2DOutlierDetector(
        **{**params, "features": FunctionTransformer(record, inverse_func=lambda rows: rows)}
    ).fit(train)
    detector.score_samples(test)
    assert set(seen) == {(60, 64), (40, 64)}
    assert detector.sample_outliers(3).shape == (3, 1, 8, 8)
    pca = PCA(5)
    detector = G2DOutlierDetector(**{**params, "features": pca}).fit(train)
    assert not hasattr(pca, "components_")
    assert detector.sample_outliers(3).shape == (3, 1, 8, 8)
    assert len(np.unique(detector.score_samples(test))) == 40


@BOTH_RECIPES
def test_transformers_that_say_so_are_given_images(fitted, train, test, params):
    gradients = OrientedGradients(n_cells=(2, 4))
    given = score(train, test, **{**params, "features": gradients})
    assert not hasattr(gradients, "image_shape_")
    by_callable = score(train, test, **{**params, "features": gradients.fit(train).transform})
    np.testing.assert_array_equal(given, by_callable)
    assert np.abs(fitted(params).score_samples(test) - given).max() > 0.01


def test_oriented_gradients_are_the_default(fitted, train, test):
    named = score(train, test, **FAST, features="oriented_gradients")
    np.testing.assert_array_equal(fitted(FAST).score_samples(test), named)
    assert np.abs(fitted(RAW).score_samples(test) - named).max() > 0.01


@pytest.mark.parametrize("params", [FAST, RAW], ids=["default", "raw"])
def test_the_default_recipe_has_no_convolutions_that_width_could_change(
    fitted, train, test, params
):
    expected = fitted(params).score_samples(test)
    np.testing.assert_array_equal(score(train, test, **params, width=4), expected)


def test_paper_recipe_with_a_neighbor_profile(train, test):
    assert len(np.unique(score(train, test, **PAPER, n_neighbors=5))) == 40


def test_raw_images_can_be_sampled_and_gradients_not(fitted):
    raw = fitted(RAW)
    samples = raw.sample_outliers(3)
    assert samples.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(samples, raw.sample_outliers(3, random_state=0))
    assert np.mean(raw.predict(raw.sample_outliers(100)) == -1) > 0.8
    default = fitted(FAST)
    for sample in (default.sample_outliers, default.sample_normals):
        with pytest.raises(ValueError, match=r'have no inverse_transform.*features="raw"'):
            sample(3)


# Composition


@BOTH_RECIPES
def test_calibration_on_images(fitted, digits, params):
    train, threes, others = digits
    detector = copy.copy(fitted(params))
    held_out = np.concatenate([train[60:], threes])[:79]
    assert detector.calibrate(held_out, false_alarm_rate=0.1) is detector
    assert np.mean(detector.predict(held_out) == -1) == pytest.approx(0.1, abs=0.015)
    p = detector.p_values(others)
    assert p.min() >= 1 / 80
    np.testing.assert_array_equal(detector.predict(others) == -1, p <= 0.1)
    np.testing.assert_array_equal(p, detector.p_values(others.reshape(-1, 64)))
    if params is FAST:
        assert np.mean(p <= 0.1) > 0.8
    with pytest.raises(ValueError, match="at least 99 normal rows to promise, got 79"):
        detector.calibrate(held_out, false_alarm_rate=0.01)


@BOTH_RECIPES
def test_contamination_flags_that_share_of_the_training_images(train, params):
    detector = G2DOutlierDetector(contamination=0.2, **params).fit(train)
    assert np.mean(detector.predict(train) == -1) == pytest.approx(0.2)


@ALL_WAYS
def test_pickle_keeps_every_bit(fitted, test, params):
    detector = fitted(params)
    stored = pickle.dumps(detector)
    assert b"torch._utils" not in stored
    loaded = pickle.loads(stored)
    np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))
    assert loaded.image_shape_ == (1, 8, 8)
    if params is not FAST:
        np.testing.assert_array_equal(loaded.sample_outliers(4), detector.sample_outliers(4))


def test_clone_forgets_the_images(train):
    detector = G2DOutlierDetector(image_shape=(1, 8, 8), **FAST).fit(train)
    copied = clone(detector)
    assert copied.get_params() == detector.get_params()
    assert not hasattr(copied, "image_shape_")


def test_grid_search_over_features(digits):
    train, _, others = digits
    X, y = np.concatenate([train, others[:60]]), np.repeat([1, -1], [100, 60])
    search = GridSearchCV(
        G2DOutlierDetector(image_shape=(1, 8, 8), **FAST),
        {"features": ["raw", "oriented_gradients"]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        error_score="raise",
    ).fit(X.reshape(-1, 64), y)
    assert search.best_score_ > 0.95
    raw, gradients = search.cv_results_["mean_test_score"]
    assert raw != gradients
    assert search.best_estimator_.image_shape_ == (1, 8, 8)
    as_images = cross_val_score(
        search.best_estimator_, X, y, cv=NormalOnlySplit(2), scoring=SCORERS["outlier_roc_auc"]
    )
    assert as_images.mean() == pytest.approx(search.best_score_)


@ALL_WAYS
def test_fixed_seed_repeats_every_bit_and_others_differ(fitted, train, test, params):
    first = fitted(params).score_samples(test)
    np.testing.assert_array_equal(score(train, test, **params), first)
    assert np.abs(score(train, test, **{**params, "random_state": 1}) - first).max() > 1e-3


@ALL_WAYS
def test_global_random_state_is_left_alone(train, test, params):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    detector = G2DOutlierDetector(**params).fit(train)
    detector.score_samples(test)
    if params is not FAST:
        detector.sample_outliers(3)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


# The paper's recipe


def test_paper_recipe_trains_its_networks(train):
    detector = G2DOutlierDetector(**{**PAPER, "max_steps": 20}).fit(train)
    assert set(detector.history_) == {"critic_loss", "generator_loss", "classifier_loss"}
    assert {len(detector.history_[k]) for k in ("critic_loss", "generator_loss")} == {20}
    assert detector.n_iter_ == 20
    assert detector.offset_ == 0
    first, last = detector.snapshots_[0], detector.snapshots_[-1]
    assert first.step < last.step == 20
    for name, weights in first.weights.items():
        if "num_batches" not in name:
            assert np.abs(weights - last.weights[name]).max() > 1e-5, name
    assert all(np.isfinite(losses).all() for losses in detector.history_.values())
    classifier_loss = detector.history_["classifier_loss"]
    assert classifier_loss[-10:].mean() < 0.5 * classifier_loss[:5].mean()


def test_paper_recipe_tells_digits_from_what_it_generates(digits):
    train, new, _ = digits
    detector = G2DOutlierDetector(**{**PAPER, "max_steps": 10}).fit(train)
    generated = detector.sample_outliers(50)
    assert np.mean(detector.predict(new) == 1) > 0.9
    assert np.mean(detector.predict(generated) == -1) > 0.9


def test_paper_recipe_without_generator_steps(train, test):
    detector = G2DOutlierDetector(**{**PAPER, "max_steps": 0}).fit(train)
    assert detector.n_iter_ == 0
    assert [(s.step, s.role) for s in detector.snapshots_] == [(0, "far")]
    assert set(detector.history_) == {"classifier_loss"}
    assert np.isfinite(detector.score_samples(test)).all()


def test_samples_are_those_of_the_snapshots(train):
    untrained, first, last = (
        G2DOutlierDetector(**{**PAPER, **params}).fit(train).sample_outliers(5)
        for params in (
            {"max_steps": 0},
            {"snapshot_selection": lambda snapshots: snapshots[:1]},
            {"snapshot_selection": lambda snapshots: snapshots[-1:]},
        )
    )
    np.testing.assert_array_equal(first, untrained)
    assert np.abs(last - untrained).max() > 0.01


def test_width_is_that_of_the_networks(fitted, train):
    wider = G2DOutlierDetector(**{**PAPER, "width": 16, "max_steps": 1}).fit(train)
    sizes = [
        sum(weights.size for weights in detector.snapshots_[0].weights.values())
        for detector in (fitted(PAPER), wider)
    ]
    assert sizes[1] > 3 * sizes[0]


@pytest.mark.parametrize("as_rows", [False, True])
def test_generated_images_lie_within_the_training_range(fitted, train, as_rows):
    detector = fitted(PAPER)
    if as_rows:
        detector = clone(detector).set_params(image_shape=(1, 8, 8)).fit(train.reshape(-1, 64))
    samples = detector.sample_outliers(40)
    assert samples.shape == ((40, 64) if as_rows else (40, 1, 8, 8))
    assert samples.min() >= 0
    assert samples.max() <= 16
    # As the untrained network has them, most are neither black nor white.
    assert 2 < samples.mean() < 14
    assert len(np.unique(samples.reshape(40, -1), axis=0)) == 40
    np.testing.assert_array_equal(samples, detector.sample_outliers(40, random_state=0))
    assert (samples != detector.sample_outliers(40, random_state=1)).any()


def test_sampled_normals_are_accepted_images_or_an_error(fitted):
    detector = copy.copy(fitted(PAPER))
    generated = detector.score_samples(detector.sample_outliers(200, random_state=1))
    detector.offset_ = float(np.median(generated))  # accepts some
    samples = detector.sample_normals(4)
    assert samples.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(detector.predict(samples), 1)
    detector.offset_ = float(generated.max()) + 100  # accepts none
    with pytest.raises(RuntimeError, match=r"Only 0 of 400 rows.* larger max_steps"):
        detector.sample_normals(4)


def test_warm_start_continues(fitted, train):
    detector = copy.copy(fitted(PAPER)).set_params(warm_start=True)
    before = detector.snapshots_[-1]
    detector.fit(train)
    assert detector.n_iter_ == 10
    assert len(detector.history_["critic_loss"]) == 10
    assert before.step == 5
    assert detector.snapshots_[-1].step == 10
    for name in ("members.0.0.weight", "members.0.3.weight"):
        moved = np.abs(detector.snapshots_[-1].weights[name] - before.weights[name]).max()
        # Five steps of size .0001 or so from where it was, not from another start.
        assert 0 < moved < 0.005
    detector.set_params(warm_start=False).fit(train)
    assert detector.n_iter_ == 5


@pytest.mark.parametrize(
    ("changed", "cut", "message"),
    [
        ({"width": 8}, slice(None), "fitted with width=4, but width is now 8"),
        ({"latent_dim": 7}, slice(None), "latent_dim=100, but latent_dim is now 7"),
        ({}, slice(7), r"image_shape=\(1, 8, 8\), but image_shape is now \(1, 8, 7\)"),
        ({"features": PCA(2)}, slice(None), "width=4, but width is now 0"),
        (
            {"recipe": "default", "width": None, "features": "raw"},
            slice(None),
            "with .*, but .* is",
        ),
    ],
)
def test_warm_start_refuses_another_architecture(fitted, train, test, changed, cut, message):
    detector = copy.copy(fitted(PAPER)).set_params(warm_start=True)
    scores = detector.score_samples(test)
    with pytest.raises(ValueError, match=message):
        detector.set_params(**changed).fit(train[..., cut])
    np.testing.assert_array_equal(detector.score_samples(test), scores)
    assert detector.image_shape_ == (1, 8, 8)


def test_a_failed_warm_start_may_be_repeated(fitted, train):
    detector = copy.copy(fitted(PAPER)).set_params(warm_start=True)
    detector.set_params(snapshot_selection=lambda snapshots: [])  # fails once it has trained
    with pytest.raises(ValueError, match="returned no snapshot"):
        detector.fit(train)
    assert detector.n_iter_ == 5
    assert detector.set_params(snapshot_selection=None).fit(train).n_iter_ == 10


def test_warm_start_of_the_default_recipe(fitted, train, test):
    detector = copy.copy(fitted(FAST)).set_params(warm_start=True).fit(train)
    assert detector.n_iter_ == 10
    assert np.isfinite(detector.score_samples(test)).all()


def test_bfloat16_trains(fitted, train, test):
    single = fitted(PAPER).score_samples(test)
    half = score(train, test, **PAPER, precision="bfloat16")
    assert np.abs(half - single).max() > 0
    assert np.corrcoef(half, single)[0, 1] > 0.5
