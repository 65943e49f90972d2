"""Which device trains."""

import time
from unittest.mock import patch

import joblib
import numpy as np
import pytest
import torch

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.training.runtime import resolve_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def detectors(n_steps):
    """Detectors that take so many steps of each training."""
    classifier = NetworkClassifier(max_steps=n_steps)
    generator = WassersteinGAN(max_steps=n_steps)
    return {
        "G2D": G2DOutlierDetector(classifier=classifier),
        "G2D trained": G2DOutlierDetector(generator=generator, classifier=classifier),
        "AVID": AVIDDetector(training=CellInpainting(max_steps=n_steps)),
    }


@pytest.fixture
def machine(monkeypatch):
    """Pretends that there are so many GPUs, or Apple's."""

    def pretend(n_gpus=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("n_gpus", "mps", "chosen"),
    [(1, True, "cuda"), (2, False, "cuda"), (0, True, "mps"), (0, False, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, n_gpus, mps, chosen):
    machine(n_gpus, mps)
    assert str(resolve_device("auto")) == chosen


def test_devices_by_name():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device='tpu9'"):
        resolve_device("tpu9")


@pytest.mark.parametrize("name", detectors(0))
def test_a_detector_says_where_it_was_trained(blobs, name):
    fitted = detectors(2)[name].fit(blobs[0])
    assert fitted.device_ == str(resolve_device("auto"))


@pytest.mark.parametrize(
    ("number", "chosen"), [("0", "cuda:0"), ("1", "cuda:1"), ("4", "cuda:1"), ("3", "cuda:0")]
)
def test_processes_of_torchrun_have_a_gpu_each(machine, monkeypatch, number, chosen):
    machine(n_gpus=3)
    monkeypatch.setenv("LOCAL_RANK", number)
    assert str(resolve_device("auto")) == chosen
    machine(mps=True)
    assert str(resolve_device("auto")) == "mps"


def device_of_100(seconds):
    """The device that a process takes where there are many."""
    time.sleep(seconds)
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 100),
    ):
        return resolve_device("auto").index


def test_workers_of_a_search_are_numbered():
    assert device_of_100(0) is None
    with joblib.parallel_config("loky", n_jobs=2):
        # The pause keeps one worker from taking all.
        numbers = joblib.Parallel()(joblib.delayed(device_of_100)(0.5) for _ in "abcd")
    first, second = sorted(set(numbers))
    assert second - first in (1, 99)  # so that they differ modulo any number of GPUs


@needs_cuda
@pytest.mark.parametrize("name", detectors(0))
def test_training_on_cuda(blobs, name):
    X_train, X_test, y_test = blobs
    fitted, again = (
        detectors(20)[name].set_params(device="cuda", random_state=0).fit(X_train) for _ in range(2)
    )
    assert fitted.device_ == "cuda"
    scores = fitted.score_samples(X_test)
    np.testing.assert_allclose(again.score_samples(X_test), scores, rtol=1e-3)
    assert scores[y_test == 1].mean() > scores[y_test == -1].mean()
