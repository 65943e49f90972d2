"""What a caller has set for PyTorch and scikit-learn, and other threads, change no score."""

import copy
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_info
from torch import nn

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.training.runtime import single_thread
from sklearn_g2d.video import ClipDetector, FixedCameraDetector

RNG = np.random.default_rng(0)
TABLE, IMAGES = RNG.normal(size=(120, 4)), RNG.normal(size=(24, 1, 16, 16))
SHORT = NetworkClassifier(max_steps=5)


def flatten(patches):
    return patches.reshape(len(patches), -1)


def of_clips():
    forest = make_pipeline(
        FunctionTransformer(flatten), IsolationForest(n_estimators=10, random_state=0)
    )
    return ClipDetector(forest, patch_size=8, overlap=0, n_worst=1)


def of_network():
    network = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.Conv2d(6, 9, 3, stride=2))
    return PretrainedFeatures(network, layers=["0", "1"], image_size=32)


def of_patches(per_location):
    return PatchDetector(features=of_network(), per_location=per_location)


DETECTORS = {
    "G2D": (G2DOutlierDetector(classifier=SHORT), TABLE),
    "G2D trained": (
        G2DOutlierDetector(generator=WassersteinGAN(max_steps=3), classifier=SHORT),
        TABLE,
    ),
    "G2D on images": (G2DOutlierDetector(classifier=SHORT), IMAGES),
    "G2D published": (
        G2DOutlierDetector.from_paper(generator__max_steps=3, classifier__max_steps=5),
        TABLE,
    ),
    "G2D published, images": (
        G2DOutlierDetector.from_paper(
            "images", generator__max_steps=2, classifier__max_steps=3, generator__n_critic=1
        ),
        IMAGES,
    ),
    "AVID": (AVIDDetector(training=CellInpainting(max_steps=5)), TABLE),
    "AVID on images": (AVIDDetector(training=MaskedInpainting(max_steps=3)), IMAGES),
    "AVID published": (AVIDDetector.from_paper("tables", training__max_steps=3), TABLE),
    "AVID published, images": (AVIDDetector.from_paper(training__max_steps=2), IMAGES),
    "clips": (of_clips(), IMAGES),
    "camera": (FixedCameraDetector(25, features=of_network()), IMAGES),
    "patches": (of_patches(True), IMAGES),
    "patches anywhere": (of_patches(False), IMAGES),
}


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES = {
    "pandas": lambda: sklearn.config_context(transform_output="pandas"),
    "polars": lambda: sklearn.config_context(transform_output="polars"),
    "float64": default_dtype,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_surroundings_change_no_bit(name):
    detector, X = DETECTORS[name]
    detector = clone(detector).set_params(random_state=0)
    fitted = clone(detector).fit(X)
    expected = fitted.score_samples(X)
    for state, surroundings in STATES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "false_alarm_rate=.* needs at least")  # of few rows
            warnings.filterwarnings("ignore", "In .* frames, most of the picture")  # of noise
            warnings.filterwarnings("ignore", "The only clip lasts")
            with surroundings():
                again, scores = clone(detector).fit(X), fitted.score_samples(X)
                scores_of_again = again.score_samples(X)
                maps = again.anomaly_map(X) if hasattr(again, "anomaly_map") else None
        np.testing.assert_array_equal(scores, expected, err_msg=state)
        np.testing.assert_array_equal(scores_of_again, expected, err_msg=state)
        if maps is not None:
            np.testing.assert_array_equal(maps, fitted.anomaly_map(X), err_msg=state)


class Own(nn.Module):
    """Makes tensors in every way that leaves the dtype to PyTorch."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.first, self.norm = nn.Linear(n_inputs, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, n_outputs)
        self.shift = nn.Parameter(torch.randn(8, device="cpu"))
        self.scale = nn.Parameter(torch.full((n_inputs,), 1.1))
        self.register_buffer("slope", torch.linspace(0.1, 1, n_inputs))
        self.exact = torch.tensor(np.array([0.1]))  # float64 under any default
        self.number = torch.tensor([0.1, 0.2], requires_grad=True)
        self.wide = nn.Linear(8, 1).double()

    def forward(self, x):
        x = self.norm(self.first(x * self.scale * self.slope)) + self.shift
        x = x + torch.arange(8) / 3 + torch.zeros(np.int64(8)) + self.number.sum()
        wide = self.wide(x.double()) + self.exact
        assert self.exact.dtype == wide.dtype == torch.float64
        hidden = torch.rand(x.shape) if self.training else torch.ones(x.shape) / 2
        return self.last(torch.cat([x * hidden, wide.float()], 1)[:, 1:])


class OwnInpainter(nn.Module):
    def __init__(self, n_channels):
        super().__init__()
        self.layer = nn.Conv2d(n_channels + 1, n_channels, 3, padding=1)

    def forward(self, x, mask):
        mask = mask.expand(len(x), -1, -1, -1)
        return self.layer(torch.cat([x * (1 - mask), mask], 1)) + torch.tensor(0.1)


class OwnCellInpainter(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.layer = nn.Linear(2 * n_features, n_features)

    def forward(self, x, mask):
        return self.layer(torch.cat([x * (1 - mask), mask.expand_as(x)], 1)) * torch.tensor(0.9)


def own_features(X):
    projection = torch.linspace(0, 1, 3 * X.shape[1]).reshape(-1, 3)
    return torch.tanh(torch.as_tensor(X, dtype=torch.float32) @ projection).numpy()


def own_optimizer(parameters, learning_rate):
    return torch.optim.RMSprop(parameters, learning_rate)


OWN = {
    "classifier": (
        G2DOutlierDetector(
            classifier=NetworkClassifier(
                max_steps=5,
                n_members=2,
                network=lambda shape, n_outputs: Own(*shape, n_outputs),
                optimizer=own_optimizer,
                schedule=lambda fraction: float(torch.cos(torch.tensor(fraction))),
            )
        ),
        TABLE,
    ),
    "generator and critic": (
        G2DOutlierDetector(
            generator=WassersteinGAN(
                max_steps=3,
                n_members=2,
                generator_network=lambda n_inputs, shape: Own(n_inputs, *shape),
                critic_network=lambda shape, n_outputs: nn.Linear(*shape, n_outputs),
            ),
            classifier=SHORT,
        ),
        TABLE,
    ),
    "features": (G2DOutlierDetector(features=own_features, classifier=SHORT), TABLE),
    "AVID": (
        AVIDDetector(
            training=MaskedInpainting(max_steps=2),
            inpainter=OwnInpainter,
            detector=lambda n_channels: nn.Conv2d(n_channels, 1, 4, stride=4),
        ),
        IMAGES,
    ),
    "AVID on tables": (
        AVIDDetector(
            training=CellInpainting(max_steps=3),
            inpainter=OwnCellInpainter,
            detector=lambda n_features: nn.Linear(n_features, n_features),
        ),
        TABLE,
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_code_of_the_users_own_computes_as_under_float32(name):
    detector, X = OWN[name]
    detector = clone(detector).set_params(random_state=0)
    fitted = clone(detector).fit(X)
    expected = fitted.score_samples(X)
    with default_dtype():
        again = clone(detector).fit(X)
        for one in (fitted, again, copy.deepcopy(again)):
            np.testing.assert_array_equal(one.score_samples(X), expected)
        assert torch.zeros(1).dtype == torch.float64  # here and in other threads


@pytest.mark.parametrize("name", DETECTORS)
def test_equal_rows_score_equal_in_every_bit(name):
    detector, X = DETECTORS[name]
    detector = clone(detector).set_params(random_state=0)
    scores = detector.fit(X).score_samples(X)
    if name in ("clips", "camera"):
        return  # whose frames depend on those before
    order = RNG.permutation(len(X))
    np.testing.assert_array_equal(detector.score_samples(X[order]), scores[order])
    alone = np.concatenate([detector.score_samples(row[None]) for row in X[:5]])
    np.testing.assert_array_equal(alone, scores[:5])
    repeated = detector.score_samples(np.repeat(X[:2], 50, axis=0))
    np.testing.assert_array_equal(repeated, np.repeat(scores[:2], 50))


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_overlapping_fits_give_the_threads_back():
    """Of two that overlap, the first one to enter leaves first."""
    before = torch.get_num_threads(), blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def first():
        with single_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with single_thread():
        leave.set()
        thread.join()
        assert set(blas_threads()) == {1}
    assert (torch.get_num_threads(), blas_threads()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks need a POSIX system")
def test_a_fork_that_only_imports_the_package_keeps_its_threads():
    script = (
        "import os, sys, torch, sklearn_g2d\n"
        "torch.set_num_threads(2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(torch.get_num_threads())\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 2


def test_verbose_shows_something_without_any_set_up():
    script = (
        "import numpy as np\n"
        "from sklearn_g2d import G2DOutlierDetector\n"
        "X = np.random.default_rng(0).normal(size=(50, 2))\n"
        "G2DOutlierDetector(verbose=1, random_state=0).fit(X).score_samples(X)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stderr.startswith("classifier: 300 steps, classifier_loss ")
    assert not done.stdout


@pytest.mark.parametrize("shape", [(10, 16, 16, 2), (10, 9, 12, 5)])
@pytest.mark.parametrize("detector", [G2DOutlierDetector(), AVIDDetector()], ids=["G2D", "AVID"])
def test_a_last_axis_that_is_the_smallest_is_not_taken_for_a_width(detector, shape):
    X = RNG.normal(size=shape)
    with pytest.raises(ValueError, match=r"channels last.*np.moveaxis\(X, -1, 1\).*image_shape="):
        detector.fit(X)
    G2DOutlierDetector(features="passthrough", classifier=SHORT, image_shape=shape[1:]).fit(X)


class SometimesNaN(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        normal = np.where(X[:, 0] > 5, np.nan, 0.5)
        return np.column_stack([normal, 1 - normal])


def test_scores_that_are_not_finite_are_an_error():
    detector = G2DOutlierDetector(classifier=SometimesNaN(), n_neighbors=0, random_state=0)
    with pytest.raises(Exception, match="classifier"):
        detector.fit(TABLE).predict([[1e9, 0, 0, 0]])
    far = np.full((1, 4), 1e9)
    detector = G2DOutlierDetector(classifier=SHORT, random_state=0).fit(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.classifier_, "log_odds", lambda X: np.full((1, len(X)), np.nan))
        for judge in (detector.score_samples, detector.predict, detector.p_values):
            with pytest.raises(ValueError, match=r"1 of 1 scores.*NetworkClassifier"):
                judge(far)
        with pytest.raises(ValueError, match="NaN or infinite"):
            detector.calibrate(TABLE)
