"""One fitted detector in several threads, and in worker processes, forked or spawned."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from threadpoolctl import threadpool_limits
from torch import nn

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, NetworkClassifier, WassersteinGAN

WINE = np.tile(load_wine().data, (8, 1))  # enough of them to share between threads
DIGITS = load_digits().images[:60, None]
LARGE_DIGITS = DIGITS.repeat(4, axis=2).repeat(4, axis=3)

QUICK = {
    "generator": WassersteinGAN(max_steps=5, n_members=2),
    "classifier": NetworkClassifier(max_steps=3, n_members=2),
}
SMALL = {
    "training": MaskedInpainting(max_steps=2),
    "inpainter": UNet(channels=2),
    "detector": PatchNet(channels=2),
}
CASES = {
    "G2D-table": (G2DOutlierDetector(**QUICK), WINE),
    "G2D-images": (G2DOutlierDetector(classifier=QUICK["classifier"]), DIGITS),
    "G2D-images-paper": (
        G2DOutlierDetector.from_paper(
            data="images",
            generator__max_steps=2,
            generator__generator_network=ConvGenerator(channels=4),
            generator__critic_network=ConvNetwork(channels=4),
            classifier__network=ConvNetwork(channels=4),
            classifier__max_steps=3,
        ),
        DIGITS,
    ),
    "AVID-table": (AVIDDetector(training=CellInpainting(max_steps=5)), WINE),
    "AVID-images": (AVIDDetector(**SMALL, precision="float32"), LARGE_DIGITS),
    "AVID-bfloat16": (AVIDDetector(**SMALL, precision="bfloat16"), LARGE_DIGITS),
    "patches": (
        PatchDetector(
            features=PretrainedFeatures(nn.Conv2d(3, 6, 3, stride=4), image_size=32),
            per_location=False,
        ),
        DIGITS,
    ),
}


@pytest.fixture(scope="module")
def scored():
    """Detectors, what they are given, and their scores by two threads."""
    for detector, X in CASES.values():
        detector.set_params(random_state=0).fit(X[:50])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield {name: (d, X, d.score_samples(X)) for name, (d, X) in CASES.items()}
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize("name", CASES)
def test_threads_score_as_one_does(scored, name):
    detector, X, expected = scored[name]
    parts = [slice(start, start + 20) for start in range(0, 40, 3)]
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda part: detector.score_samples(X[part]), parts))
    for part, found in zip(parts, scores, strict=True):
        np.testing.assert_allclose(found, expected[part], rtol=0, atol=1e-7)


def check_scores(scored):
    for detector, X, expected in scored.values():
        np.testing.assert_allclose(detector.score_samples(X), expected, rtol=0, atol=1e-7)


def check_scores_and_fit(scored):
    check_scores(scored)
    for name in ("G2D-table", "AVID-table"):
        detector, X, expected = scored[name]
        np.testing.assert_array_equal(detector.fit(X[:50]).score_samples(X), expected)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform"
)
def test_forked_workers_score_and_fit(scored):
    worker = multiprocessing.get_context("fork").Process(
        target=check_scores_and_fit, args=(scored,)
    )
    worker.start()
    worker.join(timeout=60)
    worker.kill()
    assert worker.exitcode == 0


@pytest.mark.slow
def test_spawned_workers_score(scored):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check_scores, scored).result(timeout=120)


@pytest.mark.slow
def test_workers_of_joblib_score(scored):
    joblib.Parallel(2, timeout=120)(joblib.delayed(check_scores)(scored) for _ in range(2))
