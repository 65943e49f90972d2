"""Searches on several processes: the same scores, and no more threads than there are cores."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
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
    detector = AVIDDetector(max_steps=2, region_size=12, width=2, random_state=0)
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
    "detector", [pytest.param(AVIDDetector, marks=pytest.mark.slow), G2DOutlierDetector]
)
def test_two_processes_find_what_one_does(blobs, detector):
    _, X, y = blobs
    asked = (detector(random_state=0), {"max_steps": [10]}, X, y)
    with threadpool_limits(2):
        alone = search(*asked, n_jobs=1)
    np.testing.assert_array_equal(search(*asked, n_jobs=2), alone)


@pytest.mark.slow
def test_two_processes_find_what_one_does_on_images():
    """By default, whatever the threads; networks of convolutions take the same number of them."""
    digits = load_digits()
    X, y = digits.images[:200, np.newaxis], np.where(digits.target[:200] != 9, 1, -1)
    features = (G2DOutlierDetector(random_state=0), {"max_steps": [10]}, X, y)
    convolutions = (AVIDDetector(random_state=0, width=4), {"max_steps": [10]}, X, y)
    with threadpool_limits(2):
        by_features = search(*features, n_jobs=1)
    with threadpool_limits(1):
        by_convolutions = search(*convolutions, n_jobs=1)
    np.testing.assert_array_equal(search(*features, n_jobs=2), by_features)
    np.testing.assert_array_equal(search(*convolutions, n_jobs=2), by_convolutions)
