"""Searches on several processes: the same scores, and no more threads than there are cores."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.g2d import GaussianCloud, NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit


def threads_of_training(detector, X):
    """PyTorch's threads in each step, and afterwards."""
    seen = set()

    class Watch:
        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context):
            seen.add(torch.get_num_threads())

    detector.set_callbacks(Watch()).fit(X)
    return seen, torch.get_num_threads()


@pytest.mark.parametrize("n_threads", [pytest.param(2, marks=pytest.mark.slow), 1])
def test_workers_train_on_as_many_threads_as_joblib_gives_them(make_stripes, n_threads):
    X, _ = make_stripes(12, seed=0, size=16)
    detector = AVIDDetector(
        training=MaskedInpainting(max_steps=2),
        inpainter=UNet(channels=2),
        detector=PatchNet(channels=2),
        region_size=12,
        random_state=0,
    )
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=n_threads):
        task = joblib.delayed(threads_of_training)
        counts = joblib.Parallel()(task(detector, X) for _ in range(2))
    assert counts == [({n_threads}, n_threads)] * 2


def search(detector, grid, X, y, **params):
    done = GridSearchCV(
        detector,
        grid,
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        refit=False,
        **params,
    ).fit(X, y)
    return [done.cv_results_[f"split{split}_test_score"] for split in range(2)]


@pytest.mark.parametrize(
    ("detector", "grid"),
    [
        pytest.param(
            AVIDDetector(training=CellInpainting(max_steps=10)),
            {"training__learning_rates": [(2e-3, 2e-3), (1e-2, 1e-2)]},
            marks=pytest.mark.slow,
            id="AVID",
        ),
        pytest.param(
            G2DOutlierDetector(classifier=NetworkClassifier(max_steps=30)),
            {
                "generator": [GaussianCloud(), WassersteinGAN(max_steps=10)],
                "generator__spread": [1.0, 2.0],
                "classifier__learning_rate": [1e-3, 1e-2],
            },
            id="G2D",
        ),
    ],
)
def test_two_processes_find_what_one_does(blobs, detector, grid):
    _, X, y = blobs
    asked = (detector.set_params(random_state=0), grid, X, y)
    with threadpool_limits(2):
        alone = search(*asked, n_jobs=1)
    np.testing.assert_array_equal(search(*asked, n_jobs=2), alone)
    assert len(np.unique(np.sum(alone, axis=0))) > len(alone[0]) / 2  # what is searched matters


@pytest.mark.slow
def test_two_processes_find_what_one_does_on_images():
    """By default, whatever the threads; networks of convolutions take the same number of them."""
    digits = load_digits()
    X, y = digits.images[:200, np.newaxis], np.where(digits.target[:200] != 9, 1, -1)
    features = (G2DOutlierDetector(random_state=0), {"n_neighbors": [5, 20]}, X, y)
    networks = {"inpainter": UNet(channels=4), "detector": PatchNet(channels=4)}
    avid = AVIDDetector(random_state=0, **networks)
    convolutions = (avid, {"training__max_steps": [10]}, X, y)
    with threadpool_limits(2):
        by_features = search(*features, n_jobs=1)
    with threadpool_limits(1):
        by_convolutions = search(*convolutions, n_jobs=1)
    np.testing.assert_array_equal(search(*features, n_jobs=2), by_features)
    np.testing.assert_array_equal(search(*convolutions, n_jobs=2), by_convolutions)
