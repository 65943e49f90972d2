"""Bad input: a clear error that names the value and the remedy, or a right answer."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import MaskedInpainting, UNet
from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.g2d import ConvNetwork, GaussianCloud, NetworkClassifier, WassersteinGAN
from sklearn_g2d.video import ClipDetector, FixedCameraDetector, ForegroundMotion, OpticalFlow

FAST = {"classifier": NetworkClassifier(n_members=4), "random_state": 0}
DEFAULT = G2DOutlierDetector(**FAST)
TRAINED = G2DOutlierDetector(generator=WassersteinGAN(max_steps=5, n_members=4), **FAST)
PAPER = G2DOutlierDetector.from_paper(
    data="tables", generator__max_steps=5, classifier__max_steps=100, random_state=0
)
DETECTORS = pytest.mark.parametrize(
    "detector", [DEFAULT, TRAINED, PAPER], ids=["default", "trained", "paper"]
)


def fit_and_score(X, X_test=None, detector=DEFAULT):
    detector = clone(detector)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least")  # of few rows
        warnings.filterwarnings("ignore", ".* rows share a value only")  # of copies
        scores = detector.fit(X).score_samples(X if X_test is None else X_test)
    assert np.isfinite(scores).all()
    return scores


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(60, 4))


def with_cell(X, value):
    X = X.copy()
    X[7, 2] = value
    return X


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: with_cell(X, np.nan), "contains NaN"),
        (lambda X: with_cell(X, np.inf), "contains infinity"),
        (lambda X: sparse.csr_array(X), r"X is sparse: pass X.toarray\(\)"),
        (lambda X: X + 1j, "Complex data not supported"),
        (
            lambda X: X.astype(str).astype(object) + "cm",
            r"text in 4 of 4 columns \(0, 1, 2, 3\): encode it by OneHotEncoder",
        ),
        (lambda X: X[:1], "1 sample.* while a minimum of 2 is required"),
        (lambda X: X[:0], "0 sample"),
        (lambda X: X[:, :0], "0 feature"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
        (lambda X: X[None], "dim 3"),
    ],
)
def test_bad_training_data(X, bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        G2DOutlierDetector(**FAST).fit(bad(X))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: with_cell(X, np.nan), "contains NaN"),
        (lambda X: X[:, :3], "X has 3 features, but G2DOutlierDetector is expecting 4"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
    ],
)
def test_bad_data_to_score(X, bad, message):
    detector = G2DOutlierDetector(**FAST).fit(X)
    with pytest.raises(ValueError, match=message):
        detector.predict(bad(X))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"contamination": 0.0}, r"'contamination' .* range \(0.0, 0.5\].* Got 0.0"),
        ({"contamination": 0.6}, r"Got 0.6"),
        ({"contamination": "none"}, r"'contamination' .* \{'auto'\}"),
        ({"device": "abacus"}, r"device='abacus' cannot be used here .*Pass \"auto\""),
        ({"device": "cuda:99"}, r"device='cuda:99' cannot be used here"),
        ({"precision": "float8"}, r"'precision' .* Got 'float8'"),
        ({"threshold": "auto"}, r"'threshold' .* Got 'auto'"),
        ({"measure": "length"}, r"'measure' .* Got 'length'"),
        ({"n_neighbors": -1}, r"'n_neighbors' .* Got -1"),
        ({"features": "row"}, r"'features' .* Got 'row'"),
        ({"scaler": "standard"}, r"'scaler' .* Got 'standard'"),
        ({"generator": object()}, r"'generator' "),
        ({"generator": NetworkClassifier()}, r"'generator' "),
        ({"n_generated": 0}, r"'n_generated' .* Got 0"),
        ({"classifier": object()}, r"'classifier' .* implementing 'fit' and 'predict_proba'"),
        ({"support_fraction": 0.4}, r"'support_fraction' .* Got 0.4"),
        ({"random_state": "seed"}, r"'random_state' .* Got 'seed'"),
    ],
)
def test_bad_parameters(X, params, message):
    with pytest.raises(ValueError, match=message):
        G2DOutlierDetector(**{**FAST, **params}).fit(X)


@pytest.mark.parametrize(
    ("part", "params", "message"),
    [
        ("generator", {"max_steps": -1}, r"'max_steps' .* WassersteinGAN .* Got -1"),
        ("generator", {"batch_size": 0}, r"'batch_size' .* Got 0"),
        ("generator", {"betas": (0.5,)}, r"betas must be two numbers .* got \(0.5,\)"),
        ("generator", {"betas": (0.5, 1.0)}, r"betas must be two numbers .* got \(0.5, 1.0\)"),
        ("generator", {"hidden_layer_sizes": (0,)}, r"hidden_layer_sizes must .* got \(0,\)"),
        ("generator", {"hidden_layer_sizes": 64}, r"'hidden_layer_sizes' .* Got 64"),
        ("classifier", {"hidden_layer_sizes": (2.5,)}, r"hidden_layer_sizes .* got \(2.5,\)"),
        ("classifier", {"network": ConvNetwork(channels="64")}, r"'channels' .* Got '64'"),
        ("generator", {"n_critic": 0}, r"'n_critic' .* Got 0"),
        ("generator", {"gradient_penalty": -1.0}, r"'gradient_penalty' .* Got -1.0"),
        ("generator", {"optimizer": "adamant"}, r"'optimizer' .* Got 'adamant'"),
        ("generator", {"learning_rate": -1e-3}, r"'learning_rate' .* Got -0.001"),
        ("generator", {"schedule": "sometimes"}, r"'schedule' .* Got 'sometimes'"),
        ("generator", {"n_members": 0}, r"'n_members' .* Got 0"),
        ("generator", {"latent_dim": 0}, r"'latent_dim' .* Got 0"),
        ("generator", {"snapshots": "all"}, r"'snapshots' .* Got 'all'"),
        ("generator", {"n_snapshots": 0}, r"'n_snapshots' .* Got 0"),
        ("generator", {"spread": -1.0}, r"'spread' .* Got -1.0"),
        ("generator", {"tail": -1.0}, r"'tail' .* Got -1.0"),
        ("generator", {"generator_network": "forest"}, r"'generator_network' .* Got 'forest'"),
        ("generator", {"critic_network": "forest"}, r"'critic_network' .* Got 'forest'"),
        ("classifier", {"max_steps": -1}, r"'max_steps' .* NetworkClassifier .* Got -1"),
        ("classifier", {"batch_size": 0}, r"'batch_size' .* Got 0"),
        ("classifier", {"optimizer": "adamant"}, r"'optimizer' .* Got 'adamant'"),
        ("classifier", {"learning_rate": "fast"}, r"'learning_rate' .* Got 'fast'"),
        ("classifier", {"schedule": "sometimes"}, r"'schedule' .* Got 'sometimes'"),
        ("classifier", {"n_members": 0}, r"'n_members' .* Got 0"),
        ("classifier", {"network": "forest"}, r"'network' .* Got 'forest'"),
    ],
)
def test_bad_parameters_of_parts(X, part, params, message):
    detector = clone(TRAINED).set_params(**{f"{part}__{k}": v for k, v in params.items()})
    with pytest.raises(ValueError, match=message):
        detector.fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"spread": 0.0}, r"'spread' .* GaussianCloud .* Got 0.0"),
        ({"tail": -1.0}, r"'tail' .* GaussianCloud .* Got -1.0"),
    ],
)
def test_bad_parameters_of_a_cloud(X, params, message):
    with pytest.raises(ValueError, match=message):
        G2DOutlierDetector(generator=GaussianCloud(**params), **FAST).fit(X)


@pytest.mark.parametrize(
    ("params", "part", "name"),
    [
        ({"classifier": RandomForestClassifier}, "classifier", "RandomForestClassifier"),
        ({"generator": GaussianCloud}, "generator", "GaussianCloud"),
        ({"features": PCA}, "features", "PCA"),
        ({"scaler": StandardScaler}, "scaler", "StandardScaler"),
        ({"classifier": NetworkClassifier(network=ConvNetwork)}, "classifier__network", "ConvN"),
    ],
)
def test_a_class_is_no_part(X, params, part, name):
    with pytest.raises(ValueError, match=rf"{part} must be an instance.*: pass {part}={name}"):
        G2DOutlierDetector(**params).fit(X)


def test_a_class_is_no_part_of_other_estimators(X):
    clip = X.reshape(20, 1, 3, 4)
    for estimator in (
        AVIDDetector(inpainter=UNet),
        AVIDDetector(training=MaskedInpainting),
        ClipDetector(IsolationForest),
        ClipDetector(IsolationForest(), channels=ForegroundMotion),
        FixedCameraDetector(25, estimator=IsolationForest),
        ForegroundMotion(flow=OpticalFlow),
    ):
        with pytest.raises(ValueError, match=r"must be an instance, but is the class .*: pass"):
            estimator.fit(clip)


@pytest.mark.parametrize("part", [GaussianCloud(), WassersteinGAN(), StandardScaler()])
def test_what_is_no_classifier(X, part):
    with pytest.raises(ValueError, match=r"NetworkClassifier.*'predict_proba' or None. Got "):
        G2DOutlierDetector(classifier=part).fit(X)


def test_a_factory_of_the_users_that_makes_something_else(X):
    def fit(**params):
        G2DOutlierDetector(classifier=NetworkClassifier(**params)).fit(X)

    with pytest.raises(TypeError, match=r"must return a torch.optim.Optimizer.* got 1"):
        fit(optimizer=lambda parameters, learning_rate: 1)
    with pytest.raises(TypeError, match=r"callable that builds.* got the module Linear"):
        fit(network=torch.nn.Linear(4, 2))


def test_unknown_parameters(X):
    with pytest.raises(TypeError, match="max_steps"):
        G2DOutlierDetector(max_steps=5)
    with pytest.raises(ValueError, match="Invalid parameter 'max_steps' for estimator GaussianC"):
        G2DOutlierDetector().set_params(generator__max_steps=5)


@DETECTORS
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_very_few_rows(X, n, detector):
    fit_and_score(X[:n], X, detector)


@DETECTORS
@pytest.mark.parametrize("columns", [[0], [0, 0, 0]], ids=["one", "duplicates"])
def test_one_column_and_duplicate_columns(X, columns, detector):
    scores = fit_and_score(X[:, columns], [[0.0] * len(columns), [9.0] * len(columns)], detector)
    if detector is not PAPER:
        assert scores[0] > scores[1]


def test_a_constant_column_counts_once_it_changes(X):
    X = np.column_stack([X, np.full(len(X), 7.0)])
    changed = X[:1].copy()
    changed[0, -1] = 17.0
    scores = fit_and_score(X, np.concatenate([X[:1], changed]))
    assert scores[0] > scores[1]


@DETECTORS
def test_nothing_but_a_constant(detector):
    scores = fit_and_score(np.ones((20, 3)), [[1.0, 1.0, 1.0], [5.0, 1.0, 1.0]], detector)
    if detector is not PAPER:
        assert scores[0] > scores[1]


def test_duplicate_rows(X):
    scores = fit_and_score(np.repeat(X[:10], 10, axis=0), np.concatenate([X[:1], X[:1] + 9]))
    assert scores[0] > scores[1]


def test_many_columns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1500))
    scores = fit_and_score(X[:150], np.concatenate([X[150:], 4 * X[150:]]))
    assert scores[:50].min() > scores[50:].max()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_units_change_nothing(X, scale):
    rng = np.random.default_rng(1)
    new = rng.normal(size=(20, 4)) * 3
    np.testing.assert_allclose(
        fit_and_score(scale * X, scale * new), fit_and_score(X, new), atol=1e-3
    )


@pytest.mark.parametrize("value", [1e30, 1e300, -1.7e308])
def test_a_wild_value_is_an_outlier(X, value):
    scores = fit_and_score(X, np.concatenate([X[:20], with_cell(X, value)[7:8]]))
    assert scores[-1] < scores[:-1].min()


def test_values_beyond_a_variance(X):
    with pytest.raises(ValueError, match=r"Column 2 holds values up to 1e\+300.* Rescale"):
        G2DOutlierDetector(**FAST).fit(with_cell(X, 1e300))


def test_divergence_names_the_remedy_and_keeps_the_former_state(X):
    detector = clone(TRAINED).fit(X)
    scores = detector.score_samples(X)
    detector.set_params(generator__gradient_penalty=1e38, generator__max_steps=60)
    with pytest.raises(TrainingDivergedError, match=r"critic_loss became infinite or NaN .* Lower"):
        detector.fit(2 * X)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


def test_a_failed_first_fit_leaves_nothing_behind(X):
    detector = G2DOutlierDetector(**FAST)
    before = set(vars(detector))
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(with_cell(X, np.nan))
    assert set(vars(detector)) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
def test_dtypes(dtype):
    X = np.random.default_rng(0).integers(0, 2, size=(50, 6)).astype(dtype)
    assert fit_and_score(X).dtype == np.float64


def test_memory_map(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.testing.assert_array_equal(fit_and_score(mapped), fit_and_score(X))
