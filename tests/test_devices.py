"""Which device trains."""

import joblib
import numpy as np
import pytest
import torch

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.training.runtime import _number_of_process, resolve_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


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


@pytest.mark.parametrize("detector", [AVIDDetector, G2DOutlierDetector])
def test_a_detector_says_where_it_was_trained(blobs, detector):
    fitted = detector(max_steps=2, random_state=0).fit(blobs[0])
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


def number_when_others_are_there(barrier_seconds):
    import time

    time.sleep(barrier_seconds)  # so that one worker does not do all
    return _number_of_process()


def test_workers_of_a_search_are_numbered():
    assert _number_of_process() is None
    with joblib.parallel_config("loky", n_jobs=2):
        numbers = joblib.Parallel()(
            joblib.delayed(number_when_others_are_there)(0.5) for _ in "abcd"
        )
    first, second = sorted(set(numbers))
    assert second - first == 1  # so that they differ modulo any number of GPUs


@needs_cuda
@pytest.mark.parametrize("detector", [AVIDDetector, G2DOutlierDetector])
def test_training_on_cuda(blobs, detector):
    X_train, X_test, y_test = blobs
    fitted = detector(max_steps=20, device="cuda", random_state=0).fit(X_train)
    assert fitted.device_ == "cuda"
    again = detector(max_steps=20, device="cuda", random_state=0).fit(X_train)
    scores = fitted.score_samples(X_test)
    np.testing.assert_allclose(again.score_samples(X_test), scores, rtol=1e-3)
    assert scores[y_test == 1].mean() > scores[y_test == -1].mean()
