"""G2DOutlierDetector on images: what it detects, takes, refuses and generates."""

import copy
import pickle
import warnings

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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.features import OrientedGradients, ResidualPCA, SquashingScaler
from sklearn_g2d.g2d import ConvGenerator, NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS, outlier_roc_auc_score
from sklearn_g2d.model_selection import NormalOnlySplit

DEFAULT = G2DOutlierDetector(
    classifier=NetworkClassifier(n_members=4, max_steps=60), random_state=0
)
# Perceptrons that generate the pixels, or whatever the features are.
TRAINED = clone(DEFAULT).set_params(generator=WassersteinGAN(max_steps=5, n_members=4))
PIXELS = clone(TRAINED).set_params(features="passthrough")
PAPER = G2DOutlierDetector.from_paper(
    data="images",
    generator__max_steps=5,
    generator__n_critic=2,
    generator__batch_size=16,
    generator__generator_network__channels=4,
    generator__critic_network__channels=4,
    classifier__max_steps=30,
    classifier__network__channels=4,
    random_state=0,
)
# The same with perceptrons, for features that have no rows and columns.
PAPER_ON_FEATURES = G2DOutlierDetector.from_paper(
    data="tables", generator__max_steps=5, classifier__max_steps=60, random_state=0
)
BOTH = pytest.mark.parametrize("detector", [DEFAULT, PAPER], ids=["default", "paper"])
BOTH_ON_FEATURES = pytest.mark.parametrize(
    "detector", [DEFAULT, PAPER_ON_FEATURES], ids=["default", "paper"]
)
ALL_WAYS = pytest.mark.parametrize(
    "detector", [DEFAULT, PIXELS, PAPER], ids=["default", "pixels", "paper"]
)


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
    """Detectors, fitted on `train` once; not to be changed."""
    detectors = {}

    def fit(detector):
        if id(detector) not in detectors:
            detectors[id(detector)] = clone(detector).fit(digits[0][:60])
        return detectors[id(detector)]

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


def changed(detector, **params):
    return clone(detector).set_params(**params)


def set_clones(detector, **params):
    """Set parameters of a copy of a fitted detector, whose parts the fixture owns."""
    for name in ("generator", "classifier"):
        setattr(detector, name, clone(getattr(detector, name)))
    return detector.set_params(**params)


def score(X, X_test, detector, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least")  # of few rows
        scores = changed(detector, **params).fit(X).score_samples(X_test)
    assert np.isfinite(scores).all()
    return scores


# Detection


def compare_on_digit(digit, **parts):
    """AUC of the detector, of the distance to the fifth neighbour and of a forest; rates."""
    X, X_test, y = one_digit(digit)
    rows, rows_test = X.reshape(len(X), -1), X_test.reshape(len(X_test), -1)
    detector = G2DOutlierDetector(random_state=0, **parts).fit(X)
    distances, _ = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors(rows_test)
    forest = IsolationForest(random_state=0).fit(rows)
    scores = detector.score_samples(X_test), -distances[:, -1], forest.score_samples(rows_test)
    is_flagged = detector.predict(X_test) == -1
    return [
        *(outlier_roc_auc_score(y, s) for s in scores),
        is_flagged[y == 1].mean(),
        is_flagged[y == -1].mean(),
    ]


@pytest.mark.parametrize("digit", [3, 8])
def test_detects_other_digits(digit):
    ours, neighbors, forest, false_alarms, found = compare_on_digit(digit)
    assert ours > neighbors
    assert ours > forest
    assert ours > 0.98
    assert false_alarms < 0.15
    assert found > 0.7


def test_detects_other_digits_on_average():
    short = NetworkClassifier(max_steps=60)
    results = [compare_on_digit(digit, classifier=short) for digit in range(10)]
    ours, neighbors, forest, false_alarms, found = np.mean(results, axis=0)
    assert ours > neighbors
    assert ours > forest
    assert ours > 0.99
    assert 0.005 < false_alarms < 0.1
    assert found > 0.9


@pytest.mark.parametrize(
    "features", [None, "passthrough", ResidualPCA()], ids=["default", "pixels", "components"]
)
def test_one_odd_channel_is_enough(features):
    rng = np.random.default_rng(0)
    stripes = np.tile(np.sin(np.arange(12) * np.pi / 2), (12, 1))
    X = rng.normal(size=(120, 3, 12, 12)) + 3 * stripes
    odd = X[100:].copy()
    odd[:, 1] += 6 * stripes.T
    detector = G2DOutlierDetector(features=features, random_state=0)
    scores = score(X[:100], np.concatenate([X[100:], odd]), detector)
    assert scores[:20].min() > scores[20:].max()


# Shapes


@ALL_WAYS
def test_rows_of_pixels_score_like_images(fitted, train, test, detector):
    images = fitted(detector)
    rows = changed(detector, image_shape=[1, 8, 8]).fit(train.reshape(-1, 64))
    expected = images.score_samples(test)
    for one in (images, rows):
        assert one.image_shape_ == (1, 8, 8)
        assert one.n_features_in_ == 64
        assert not hasattr(one, "feature_names_in_")
        np.testing.assert_array_equal(one.score_samples(test), expected)
        np.testing.assert_array_equal(one.score_samples(test.reshape(-1, 64)), expected)
    assert len(np.unique(expected)) == len(expected)


@pytest.mark.parametrize("detector", [DEFAULT, PIXELS], ids=["default", "pixels"])
def test_rows_of_pixels_are_a_table_unless_their_shape_is_said(fitted, train, test, detector):
    as_table = clone(detector).fit(train.reshape(-1, 64))
    assert as_table.image_shape_ is None
    expected = fitted(detector).score_samples(test)
    assert np.abs(as_table.score_samples(test.reshape(-1, 64)) - expected).max() > 0.01


def test_convolutions_refuse_a_table(train):
    with pytest.raises(ValueError, match=r"ConvGenerator needs images.* shape \(64,\)"):
        clone(PAPER).fit(train.reshape(-1, 64))
    generator = WassersteinGAN(max_steps=1)
    with pytest.raises(ValueError, match=r"ConvNetwork needs images.* shape \(64,\)"):
        changed(PAPER, generator=generator).fit(train.reshape(-1, 64))


def test_image_shape_may_say_what_the_images_say(fitted, train, test):
    scores = score(train, test, DEFAULT, image_shape=(1, 8, 8))
    np.testing.assert_array_equal(scores, fitted(DEFAULT).score_samples(test))


def test_image_shape_may_be_an_array(train):
    detector = changed(DEFAULT, image_shape=np.array([1, 8, 8])).fit(train)
    assert detector.image_shape_ == (1, 8, 8)


def test_tags_tell_of_images():
    tags = get_tags(G2DOutlierDetector()).input_tags
    assert tags.two_d_array
    assert tags.three_d_array


def test_frames_of_pixels_keep_their_names(fitted, train, test):
    names = [f"pixel{i}" for i in range(64)]
    frame, frame_test = (pd.DataFrame(x.reshape(-1, 64), columns=names) for x in (train, test))
    detector = changed(DEFAULT, image_shape=(1, 8, 8)).fit(frame)
    assert list(detector.feature_names_in_) == names
    assert detector.image_shape_ == (1, 8, 8)
    expected = fitted(DEFAULT).score_samples(test)
    np.testing.assert_array_equal(detector.score_samples(frame_test), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(frame_test[names[::-1]])


def test_lists_and_tensors_are_arrays(fitted, train, test):
    expected = fitted(DEFAULT).score_samples(test)
    for convert in (np.ndarray.tolist, torch.tensor):
        np.testing.assert_array_equal(score(convert(train), convert(test), DEFAULT), expected)


@ALL_WAYS
def test_memory_layout_does_not_matter(fitted, train, test, detector):
    expected = fitted(detector).score_samples(test)
    train.setflags(write=False)

    def twice_reversed(x):
        return x[:, :, ::-1].copy()[:, :, ::-1]

    def formerly_channels_last(x):
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)

    def every_second(x):
        return np.repeat(x, 2, axis=0)[::2]

    for lay_out in (twice_reversed, formerly_channels_last, every_second):
        laid_out, laid_out_test = lay_out(train), lay_out(test)
        np.testing.assert_array_equal(laid_out, train)
        np.testing.assert_array_equal(score(laid_out, laid_out_test, detector), expected)
    rows, rows_test = (np.asfortranarray(x.reshape(-1, 64)) for x in (train, test))
    scores = score(rows, rows_test, detector, image_shape=(1, 8, 8))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-10)


@ALL_WAYS
def test_colour_images_in_a_foreign_layout(detector):
    X = np.random.default_rng(0).normal(size=(30, 8, 9, 3))  # channels last
    X.setflags(write=False)
    images = np.moveaxis(X, -1, 1)
    expected = score(images.copy(), images.copy(), detector)
    np.testing.assert_array_equal(score(images, images, detector), expected)
    rows = images.reshape(30, -1)
    scores = score(rows, rows, detector, image_shape=(3, 8, 9))
    np.testing.assert_array_equal(scores, expected)


@ALL_WAYS
def test_memory_map_of_bytes(fitted, train, test, tmp_path, detector):
    expected = fitted(detector).score_samples(test)
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
    np.testing.assert_allclose(score(mapped, mapped_test, detector), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@ALL_WAYS
def test_bytes_score_like_floats(fitted, train, test, detector, dtype):
    typed = clone(detector).fit(train.astype(dtype))
    expected = fitted(detector).score_samples(test)
    np.testing.assert_allclose(typed.score_samples(test.astype(dtype)), expected, atol=1e-7)
    np.testing.assert_allclose(typed.score_samples(test), expected, atol=1e-7)


@BOTH
def test_units_of_intensity_change_nothing(fitted, train, test, detector):
    expected = fitted(detector).score_samples(test)
    for factor in (1e30, 1e-30):
        rescaled = score(factor * train, factor * test, detector)
        np.testing.assert_allclose(rescaled, expected, atol=1e-3)


@ALL_WAYS
def test_a_score_does_not_depend_on_its_batch(fitted, digits, detector):
    detector = fitted(detector)
    X = digits[2][:270]  # more than are scored at once by convolutions
    together = detector.score_samples(X)
    alone = np.concatenate([detector.score_samples(image[None]) for image in X[::9]])
    np.testing.assert_allclose(alone, together[::9], rtol=0, atol=1e-7)
    reverse = detector.score_samples(X[::-1])[::-1]
    np.testing.assert_allclose(reverse, together, rtol=0, atol=1e-7)


@BOTH
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 12, 20), (1, 33, 17), (3, 9, 8)])
def test_sizes(detector, shape):
    X = np.random.default_rng(0).normal(size=(20, *shape)).cumsum(axis=-1)
    detector = clone(detector).fit(X)
    assert detector.image_shape_ == shape
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 20


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 3), (2, 4, 5)])
@pytest.mark.parametrize("detector", [PIXELS, PAPER], ids=["pixels", "paper"])
def test_tiny_images(detector, shape):
    X = np.random.default_rng(0).normal(size=(30, *shape))
    assert len(np.unique(score(X, X, detector))) == 30
    assert clone(detector).fit(X).sample_outliers(3).shape == (3, *shape)


@BOTH
@pytest.mark.parametrize("n", [2, 3, 5])
def test_very_few_images(train, test, detector, n):
    score(train[:n], test, detector)


@BOTH
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_nothing_but_a_constant(detector, dtype):
    X = np.full((20, 1, 8, 8), 7, dtype=dtype)
    edge = X[:1].copy()
    edge[0, 0, :, 4:] = 9
    same, other = score(X, np.concatenate([X[:1], edge]), detector)
    assert same > other


# Refusals


@pytest.mark.parametrize(
    ("detector", "params", "bad", "message"),
    [
        (
            DEFAULT,
            {},
            lambda x: np.moveaxis(x, 1, -1),
            r"channels last.* pass np.moveaxis\(X, -1, 1\)",
        ),
        (
            DEFAULT,
            {},
            lambda x: x[:, 0],
            r"X has shape \(60, 8, 8\), of dim 3.*pass X\[:, np.newaxis\]",
        ),
        (DEFAULT, {}, lambda x: x[None], "dim 5"),
        (DEFAULT, {}, lambda x: x[:, :, :2, :2], '8 x 8 pixels, got 2 x 2.*features="passthrough"'),
        (DEFAULT, {}, lambda x: x[:1], "1 sample.* while a minimum of 2 is required"),
        (DEFAULT, {}, lambda x: x[:0], "0 sample.* while a minimum of 2 is required"),
        (DEFAULT, {}, lambda x: np.where(x == 16, np.nan, x), "contains NaN"),
        (DEFAULT, {}, lambda x: np.where(x == 16, np.inf, x), "contains infinity"),
        (PAPER, {}, lambda x: np.where(x == 16, np.nan, x), "contains NaN"),
        (PAPER, {}, lambda x: x[:, :, :1], "at least 2 x 2 pixels, got 1 x 8.*perceptron"),
        (DEFAULT, {"image_shape": (8, 8)}, lambda x: x, r"three positive integers.* got \(8, 8\)"),
        (
            DEFAULT,
            {"image_shape": (1, 0, 8)},
            lambda x: x,
            r"three positive integers.* got \(1, 0, 8\)",
        ),
        (
            DEFAULT,
            {"image_shape": (1, 8.0, 8)},
            lambda x: x,
            r"three positive integers.* got \(1, 8.0",
        ),
        (DEFAULT, {"image_shape": 64}, lambda x: x, "'image_shape' parameter .* Got 64"),
        (
            DEFAULT,
            {"image_shape": (1, 4, 16)},
            lambda x: x,
            r"X has image shape \(1, 8, 8\), but .* was given image_shape=\(1, 4, 16\)",
        ),
        (
            DEFAULT,
            {"image_shape": (3, 8, 8)},
            lambda x: np.moveaxis(np.repeat(x, 3, 1), 1, -1),
            "np.moveaxis",
        ),
        (
            DEFAULT,
            {"image_shape": (1, 8, 8)},
            lambda x: x.reshape(60, 64)[:, :60],
            r"X has 60 features, but image_shape=\(1, 8, 8\) asks for 64",
        ),
        (
            DEFAULT,
            {},
            lambda x: pd.DataFrame({"id": 1, "image": list(x)})[["image"]],
            r"cells of X\['image'\] hold whole images.* pass np.stack\(list\(X\['image'\]\)\)",
        ),
        (
            DEFAULT,
            {},
            lambda x: np.fromiter(list(x), dtype=object),
            r"cells of X hold whole images.* pass np.stack\(list\(X\)\)",
        ),
        (
            DEFAULT,
            {"features": OrientedGradients()},
            lambda x: x.reshape(60, 64),
            r"OrientedGradients takes images.* X has shape \(60, 64\).* image_shape=",
        ),
    ],
)
def test_bad_training_images(train, detector, params, bad, message):
    with pytest.raises(ValueError, match=message):
        changed(detector, **params).fit(bad(train))


@BOTH
def test_bad_images_to_score(fitted, test, detector):
    detector = fitted(detector)
    for bad, message in [
        (np.repeat(test, 3, axis=1), r"image shape \(3, 8, 8\), but .* fitted on \(1, 8, 8\)"),
        (test[..., :7], r"X has image shape \(1, 8, 7\), but .* was fitted on \(1, 8, 8\)"),
        (np.moveaxis(test, 1, -1), r"channels last.* pass np.moveaxis\(X, -1, 1\)"),
        (test[:, 0], r"of dim 3.* pass X\[:, np.newaxis\]"),
        (test.reshape(-1, 64)[:, :60], "X has 60 features, but .* is expecting 64 features"),
        (pd.DataFrame({"image": list(test)}), r"pass np.stack\(list\(X\['image'\]\)\)"),
        (np.where(test == 16, np.nan, test), "contains NaN"),
        (test[0], r"X has shape \(1, 8, 8\), of dim 3.* as an array of one: X\[np.newaxis\]\.$"),
        (test[0, 0], r"\(8, 8\), of dim 2.* array of one: X\[np.newaxis, np.newaxis\]\.$"),
    ]:
        for method in (detector.score_samples, detector.predict, detector.p_values):
            with pytest.raises(ValueError, match=message):
                method(bad)


@BOTH
def test_no_image_to_score(fitted, test, detector):
    with pytest.raises(ValueError, match="0 sample"):
        fitted(detector).predict(test[:0])


def test_channels_last_is_told_from_a_wrong_size_by_what_was_fitted():
    X = np.random.default_rng(0).normal(size=(20, 5, 8, 9))  # five channels: no usual number
    detector = changed(DEFAULT, features="passthrough").fit(X)
    with pytest.raises(ValueError, match=r"np.moveaxis\(X, -1, 1\)"):
        detector.predict(np.moveaxis(X, 1, -1))
    with pytest.raises(ValueError, match=r"image shape \(5, 9, 8\), but .* fitted on \(5, 8, 9\)"):
        detector.predict(X.swapaxes(2, 3))


def test_an_unusual_number_of_channels_is_believed_once_said():
    X = np.random.default_rng(0).normal(size=(20, 2, 5, 4))
    detector = changed(DEFAULT, features="passthrough")
    with pytest.raises(ValueError, match="channels last"):
        detector.fit(X)
    detector.set_params(image_shape=(2, 5, 4)).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_table_is_no_image(train):
    detector = clone(DEFAULT).fit(train.reshape(-1, 64))
    assert detector.image_shape_ is None
    with pytest.raises(ValueError, match=r"image shape \(1, 8, 8\), but .* on rows of a table"):
        detector.predict(train)
    assert detector.fit(train).image_shape_ == (1, 8, 8)
    assert detector.fit(train.reshape(-1, 64)).image_shape_ is None


@pytest.mark.parametrize("value", [1e5, 1e30, 1e300])
@ALL_WAYS
def test_a_wild_pixel_is_an_outlier(fitted, train, detector, value):
    wild = train[:1].copy()
    wild[0, 0, 4, 4] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = fitted(detector).score_samples(np.concatenate([train, wild]))
    assert np.isfinite(scores).all()
    if detector is not PAPER:
        assert scores[-1] < scores[:-1].min()


@ALL_WAYS
def test_a_failed_fit_changes_nothing(fitted, train, test, detector):
    features = detector.features
    detector = copy.copy(fitted(detector))
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
    detector.set_params(features=features)
    assert detector.image_shape_ == (1, 8, 8)
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is before[name] for name in before if name != "features")
    np.testing.assert_array_equal(detector.score_samples(test), scores)


@BOTH
def test_a_failed_first_fit_leaves_nothing_behind(train, detector):
    detector = changed(detector, features=lambda images: 0.0)
    before = set(vars(detector))
    with pytest.raises(ValueError, match="features returned"):
        detector.fit(train)
    assert set(vars(detector)) == before


# Features


@BOTH_ON_FEATURES
def test_callable_features_are_given_images(digits, detector):
    seen = []

    def halves(images):
        seen.append(images.shape)
        return images.mean(axis=-1)

    train, test, others = digits
    detector = changed(detector, features=halves).fit(others)
    detector.score_samples(test[:1])
    detector.score_samples(train.reshape(-1, 64))
    assert {shape[1:] for shape in seen} == {(1, 8, 8)}
    assert max(shape[0] for shape in seen) == 256
    for n in (44, 1, 100):  # 300 = 256 + 44
        assert (n, 1, 8, 8) in seen


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: 1.0, r"shape \(\) for 60 samples; it must return one row of features for each"),
        (lambda x: x[1:].reshape(len(x) - 1, -1), r"shape \(59, 64\) for 60 samples"),
        (lambda x: x.reshape(len(x), -1).T, r"shape \(64, 60\) for 60 samples"),
        (lambda x: np.full((len(x), 2), np.nan), "features returned NaN or infinity"),
    ],
)
@BOTH
def test_bad_callable_features(train, detector, features, message):
    with pytest.raises(ValueError, match=message):
        changed(detector, features=features).fit(train)


def test_callable_features_are_checked_when_scoring(train, test):
    detector = changed(DEFAULT, features=lambda x: x[:60].reshape(len(x[:60]), -1)).fit(train)
    with pytest.raises(ValueError, match=r"shape \(60, 64\) for 80 samples"):
        detector.predict(np.concatenate([test, test]))


@BOTH_ON_FEATURES
def test_transformers_are_given_rows(train, test, detector):
    seen = []

    def record(rows):
        seen.append(rows.shape)
        return rows

    recorder = FunctionTransformer(record, inverse_func=lambda rows: rows)
    detector = changed(detector, features=recorder).fit(train)
    detector.score_samples(test)
    assert set(seen) == {(60, 64), (40, 64)}
    assert detector.sample_outliers(3).shape == (3, 1, 8, 8)
    pca = PCA(5)
    detector = changed(detector, features=pca).fit(train)
    assert not hasattr(pca, "components_")
    assert detector.sample_outliers(3).shape == (3, 1, 8, 8)
    assert len(np.unique(detector.score_samples(test))) == 40


@BOTH_ON_FEATURES
def test_transformers_that_say_so_are_given_images(train, test, detector):
    gradients = OrientedGradients(n_cells=(2, 4))
    given = score(train, test, detector, features=gradients)
    assert not hasattr(gradients, "image_shape_")
    by_callable = score(train, test, detector, features=gradients.fit(train).transform)
    np.testing.assert_array_equal(given, by_callable)
    others = score(train, test, detector, features=OrientedGradients(n_cells=(2, 3)))
    assert np.abs(others - given).max() > 0.01


def test_the_default_features_of_images(fitted, train, test):
    """Gradients and their components; the scaler is one for coordinates of one space."""
    expected = fitted(DEFAULT).score_samples(test)
    features = make_pipeline(OrientedGradients(), ResidualPCA())
    np.testing.assert_array_equal(score(train, test, DEFAULT, features=features), expected)
    scaler = SquashingScaler(bound=np.inf, range_weight=0.0, common_scale=True)
    by_hand = scaler.fit_transform(features.fit_transform(train))
    detector = fitted(DEFAULT)
    found = detector.scaler_.transform(detector.features_.transform(train))
    # Sums on several threads, as here by hand, differ in their last digits from those of a fit.
    np.testing.assert_allclose(found, by_hand, rtol=1e-8, atol=1e-12)
    assert np.abs(fitted(TRAINED).score_samples(test) - expected).max() > 0.01


def test_features_of_the_user_are_not_changed(train, test):
    """Embeddings, unlike gradients, are not reduced to components and a remainder."""
    rows = train.reshape(60, 64)
    detector = changed(DEFAULT, features=lambda images: images.reshape(-1, 64)).fit(train)
    scaler = SquashingScaler(bound=np.inf, range_weight=0.0, common_scale=True).fit(rows)
    np.testing.assert_array_equal(detector.scaler_.transform(rows), scaler.transform(rows))
    named = score(train, test, DEFAULT, features="passthrough")
    np.testing.assert_array_equal(detector.score_samples(test), named)
    components = score(train, test, DEFAULT, features=ResidualPCA())
    assert np.abs(components - named).max() > 0.01


def test_the_paper_with_a_neighbor_profile(train, test):
    networks = {"classifier__network": "perceptron", "n_neighbors": 5}
    assert len(np.unique(score(train, test, PAPER, **networks))) == 40


def test_pixels_can_be_sampled_and_gradients_not(fitted):
    pixels = fitted(PIXELS)
    samples = pixels.sample_outliers(3)
    assert samples.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(samples, pixels.sample_outliers(3, random_state=0))
    assert np.mean(pixels.predict(pixels.sample_outliers(100)) == -1) > 0.8
    trained = fitted(TRAINED)
    for sample in (trained.sample_outliers, trained.sample_normals):
        with pytest.raises(ValueError, match=r'have no inverse_transform.*features="passthrough"'):
            sample(3)


# Composition


@BOTH
def test_calibration_on_images(fitted, digits, detector):
    train, threes, others = digits
    is_default = detector is DEFAULT
    detector = copy.copy(fitted(detector))
    held_out = np.concatenate([train[60:], threes])[:79]
    assert detector.calibrate(held_out, false_alarm_rate=0.1) is detector
    assert np.mean(detector.predict(held_out) == -1) == pytest.approx(0.1, abs=0.015)
    p = detector.p_values(others)
    assert p.min() >= 1 / 80
    np.testing.assert_array_equal(detector.predict(others) == -1, p <= 0.1)
    np.testing.assert_array_equal(p, detector.p_values(others.reshape(-1, 64)))
    if is_default:
        assert np.mean(p <= 0.1) > 0.8
    with pytest.raises(ValueError, match="at least 99 held-out normal rows; got 79"):
        detector.calibrate(held_out, false_alarm_rate=0.01)


@BOTH
def test_contamination_flags_that_share_of_the_training_images(train, detector):
    detector = changed(detector, contamination=0.2).fit(train)
    assert np.mean(detector.predict(train) == -1) == pytest.approx(0.2)


@ALL_WAYS
def test_pickle_keeps_every_bit(fitted, test, detector):
    can_sample = detector is not DEFAULT
    detector = fitted(detector)
    stored = pickle.dumps(detector)
    assert b"torch._utils" not in stored
    loaded = pickle.loads(stored)
    np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))
    assert loaded.image_shape_ == (1, 8, 8)
    if can_sample:
        np.testing.assert_array_equal(loaded.sample_outliers(4), detector.sample_outliers(4))


def test_clone_forgets_the_images(train):
    detector = changed(DEFAULT, image_shape=(1, 8, 8)).fit(train)
    copied = clone(detector)
    assert repr(copied) == repr(detector)
    assert copied.image_shape == (1, 8, 8)
    assert not hasattr(copied, "image_shape_")


def test_grid_search_over_features(digits):
    train, _, others = digits
    X, y = np.concatenate([train, others[:60]]), np.repeat([1, -1], [100, 60])
    search = GridSearchCV(
        changed(DEFAULT, image_shape=(1, 8, 8)),
        {"features": ["passthrough", make_pipeline(OrientedGradients(), ResidualPCA())]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        error_score="raise",
    ).fit(X.reshape(-1, 64), y)
    assert search.best_score_ > 0.95
    pixels, gradients = search.cv_results_["mean_test_score"]
    assert pixels != gradients
    assert search.best_estimator_.image_shape_ == (1, 8, 8)
    as_images = cross_val_score(
        search.best_estimator_, X, y, cv=NormalOnlySplit(2), scoring=SCORERS["outlier_roc_auc"]
    )
    assert as_images.mean() == pytest.approx(search.best_score_)


@ALL_WAYS
def test_fixed_seed_repeats_every_bit_and_others_differ(fitted, train, test, detector):
    first = fitted(detector).score_samples(test)
    np.testing.assert_array_equal(score(train, test, detector), first)
    assert np.abs(score(train, test, detector, random_state=1) - first).max() > 1e-3


@ALL_WAYS
def test_global_random_state_is_left_alone(train, test, detector):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    fitted = clone(detector).fit(train)
    fitted.score_samples(test)
    if detector is not DEFAULT:
        fitted.sample_outliers(3)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


# The paper's method


def test_the_paper_trains_its_networks(train):
    detector = changed(PAPER, generator__max_steps=20).fit(train)
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


def test_the_paper_tells_digits_from_what_it_generates(digits):
    train, new, _ = digits
    detector = changed(PAPER, generator__max_steps=10).fit(train)
    generated = detector.sample_outliers(50)
    assert np.mean(detector.predict(new) == 1) > 0.9
    assert np.mean(detector.predict(generated) == -1) > 0.9


def test_the_paper_without_generator_steps(train, test):
    detector = changed(PAPER, generator__max_steps=0).fit(train)
    assert detector.n_iter_ == 0
    assert [(s.step, s.role) for s in detector.snapshots_] == [(0, "far")]
    assert set(detector.history_) == {"classifier_loss"}
    assert np.isfinite(detector.score_samples(test)).all()


def test_samples_are_those_of_the_snapshots(train):
    untrained, first, last = (
        changed(PAPER, **params).fit(train).sample_outliers(5)
        for params in (
            {"generator__max_steps": 0},
            {"generator__snapshots": lambda snapshots: snapshots[:1]},
            {"generator__snapshots": lambda snapshots: snapshots[-1:]},
        )
    )
    np.testing.assert_array_equal(first, untrained)
    assert np.abs(last - untrained).max() > 0.01


def test_channels_are_those_of_the_networks(fitted, train):
    network = ConvGenerator(channels=16)
    wider = changed(PAPER, generator__generator_network=network, generator__max_steps=1).fit(train)
    sizes = [
        sum(weights.size for weights in detector.snapshots_[0].weights.values())
        for detector in (fitted(PAPER), wider)
    ]
    assert sizes[1] > 3 * sizes[0]


@pytest.mark.parametrize("as_rows", [False, True])
def test_generated_images_lie_within_the_training_range(fitted, train, as_rows):
    detector = fitted(PAPER)
    if as_rows:
        detector = changed(detector, image_shape=(1, 8, 8)).fit(train.reshape(-1, 64))
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
    ("params", "cut", "message"),
    [
        (
            {"generator__generator_network__channels": 8},
            slice(None),
            r"ConvGenerator\(channels=4\), but .* is now ConvGenerator\(channels=8\)",
        ),
        (
            {"generator__critic_network__channels": 8},
            slice(None),
            r"ConvNetwork\(channels=4\), but .* is now ConvNetwork\(channels=8\)",
        ),
        ({"generator__latent_dim": 7}, slice(None), "latent_dim=100, but latent_dim is now 7"),
        ({}, slice(7), r"sample=\(1, 8, 8\), but .* is now \(1, 8, 7\)"),
        ({"features": PCA(2)}, slice(None), r"sample=\(1, 8, 8\), but .* is now \(2,\)"),
        ({"generator": WassersteinGAN(max_steps=1)}, slice(None), "with .*, but .* is"),
        ({"generator": None}, slice(None), r"warm_start=True .*generator=WassersteinGAN\(\)"),
    ],
)
def test_warm_start_refuses_another_architecture(fitted, train, test, params, cut, message):
    detector = copy.copy(fitted(PAPER)).set_params(warm_start=True)
    scores = detector.score_samples(test)
    with pytest.raises(ValueError, match=message):
        set_clones(detector, **params).fit(train[..., cut])
    np.testing.assert_array_equal(detector.score_samples(test), scores)
    assert detector.image_shape_ == (1, 8, 8)


def test_a_failed_warm_start_may_be_repeated(fitted, train):
    detector = copy.copy(fitted(PAPER)).set_params(warm_start=True)
    # Fails once it has trained.
    set_clones(detector, generator__snapshots=lambda snapshots: [])
    with pytest.raises(ValueError, match="returned no snapshot"):
        detector.fit(train)
    assert detector.n_iter_ == 5
    assert detector.set_params(generator__snapshots="loss").fit(train).n_iter_ == 10


def test_warm_start_of_a_generator_of_features(fitted, train, test):
    detector = copy.copy(fitted(TRAINED)).set_params(warm_start=True).fit(train)
    assert detector.n_iter_ == 10
    assert np.isfinite(detector.score_samples(test)).all()


def test_bfloat16_trains(fitted, train, test):
    single = fitted(PAPER).score_samples(test)
    half = score(train, test, PAPER, precision="bfloat16")
    assert np.abs(half - single).max() > 0
    assert np.corrcoef(half, single)[0, 1] > 0.5
