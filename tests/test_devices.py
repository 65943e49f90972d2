"""Which device trains and scores, and that devices agree.

Bodies of tests that need a GPU run on the CPU, too, so that they are known to run at all.
"""

import contextlib
import copy
import io
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import joblib
import numpy as np
import pytest
import torch
import trainer_checks
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from test_checkpoints import Interrupt
from torch import distributed
from torch.nn import functional as F

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector, persistence
from sklearn_g2d._base import _on_devices
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet, _models
from sklearn_g2d.callbacks import Checkpoint
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, NetworkClassifier, WassersteinGAN
from sklearn_g2d.training import cuda_arithmetic, parallel
from sklearn_g2d.training.convolutions import _doubled, folded
from sklearn_g2d.training.runtime import arithmetic_of, choose_own_gpu, resolve_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
on_cuda = pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])
EVERY_DEVICE = pytest.mark.parametrize("device", ["cpu", on_cuda])


def make_detectors(n_steps):
    """Detectors that take so many steps of each training."""
    classifier = NetworkClassifier(max_steps=n_steps, n_members=2)
    generator = WassersteinGAN(max_steps=n_steps, n_members=2)
    small = {"inpainter": UNet(channels=2), "detector": PatchNet(channels=2), "region_size": 8}
    steps = {"training__max_steps": n_steps, "training__batch_size": 4}
    torch.manual_seed(0)
    features = PretrainedFeatures(torch.nn.Conv2d(3, 4, 3, stride=2), image_size=16)
    return {
        "G2D": G2DOutlierDetector(classifier=classifier),
        "G2D trained": G2DOutlierDetector(generator=generator, classifier=classifier),
        "G2D as published, images": G2DOutlierDetector.from_paper(
            "images",
            generator__max_steps=n_steps,
            generator__epoch_steps=30,
            generator__generator_network=ConvGenerator(channels=2),
            generator__critic_network=ConvNetwork(channels=2),
            classifier__max_steps=n_steps,
            classifier__network=ConvNetwork(channels=2),
        ),
        "G2D on features of images": G2DOutlierDetector(features=features, classifier=classifier),
        "AVID": AVIDDetector(training=CellInpainting(max_steps=n_steps)),
        "AVID images": AVIDDetector(training=MaskedInpainting(), **small).set_params(**steps),
        "AVID as published, images": AVIDDetector.from_paper("images", **small, **steps),
        "patches of images": PatchDetector(features=features),
    }


NAMES = list(make_detectors(0))
CONVOLUTIONAL = {name for name in NAMES if "images" in name}


def has_features(name):
    return "features of" in name or "patches" in name


def trains_convolutions(name):
    return name in CONVOLUTIONAL and not has_features(name)


def make_data(name):
    """Rows, or images, of which the last ten are odd."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 1, 16, 16) if name in CONVOLUTIONAL else (80, 3))
    if name in CONVOLUTIONAL:
        X += 3 * np.sin(np.arange(16))
    X[-10:] = 2 * X[-10:] + 1
    return X[:-10], X


def fit_on(device, name, n_steps=3):
    """Give a detector fitted on a device in float32, and what it is to score."""
    detector, (X, X_new) = make_detectors(n_steps)[name].set_params(random_state=0), make_data(name)
    if "device" in detector.get_params(deep=False):
        detector.set_params(device=device, precision="float32")
    if has_features(name):
        detector.set_params(features__device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="false_alarm_rate")
        return detector.fit(X), X_new


def assert_close(scores, expected):
    """Scores of two devices agree within 1e-4 of their spread."""
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4 * np.std(expected))


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
    [(1, True, "cuda"), (2, False, "cuda"), (0, True, "cpu"), (0, False, "cpu")],
)
def test_auto_takes_cuda_for_convolutions_and_else_the_cpu(machine, n_gpus, mps, chosen):
    machine(n_gpus, mps)
    assert str(resolve_device("auto")) == chosen
    assert str(resolve_device("auto", is_convolutional=False)) == "cpu"


def test_devices_by_name():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device='tpu9'"):
        resolve_device("tpu9")


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_asks_for_the_device_that_suits_it(monkeypatch, name):
    asked = []

    def choose(device, *, is_convolutional=True):
        asked.append((device, is_convolutional))
        return torch.device("cpu")

    monkeypatch.setattr("sklearn_g2d.training.runtime.resolve_device", choose)
    monkeypatch.setattr("sklearn_g2d.features._pretrained.resolve_device", choose)
    fitted, _ = fit_on("auto", name, n_steps=1)
    assert getattr(fitted, "device_", "cpu") == "cpu"
    assert ("auto", name in CONVOLUTIONAL) in asked
    assert (("auto", False) in asked) == ("patches" not in name and not trains_convolutions(name))


@pytest.mark.parametrize(
    ("number", "chosen"), [("0", "cuda:0"), ("1", "cuda:1"), ("4", "cuda:1"), ("3", "cuda:0")]
)
def test_processes_of_torchrun_have_a_gpu_each(machine, monkeypatch, number, chosen):
    machine(n_gpus=3)
    monkeypatch.setenv("LOCAL_RANK", number)
    assert str(resolve_device("auto")) == chosen


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


# Scores, maps and features of every device


@EVERY_DEVICE
@pytest.mark.parametrize("name", NAMES)
def test_what_a_device_has_fitted_scores_alike_on_the_cpu(device, name):
    fitted, X = fit_on(device, name)
    expected = fitted.score_samples(X)
    if has_features(name):  # with a network that files cannot hold
        loaded = pickle.loads(pickle.dumps(fitted))
    else:
        fitted.save(file := io.BytesIO())
        file.seek(0)
        loaded = persistence.load(file)
    assert loaded.to("cpu") is loaded
    assert {part.device_ for part in _on_devices(loaded)} == {"cpu"}
    assert_close(loaded.score_samples(X), expected)
    if hasattr(loaded, "anomaly_map"):
        assert_close(loaded.anomaly_map(X), fitted.anomaly_map(X))
    if hasattr(loaded, "inpaint"):
        assert_close(loaded.inpaint(X), fitted.inpaint(X))
    np.testing.assert_array_equal(loaded.to(device).score_samples(X), expected)
    again, _ = fit_on(device, name)
    np.testing.assert_array_equal(again.score_samples(X), expected)
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(loaded))
    assert b"_folded" not in pickle.dumps(loaded)


def tensors_of(part):
    """All tensors that an estimator holds."""
    if isinstance(part, torch.nn.Module):
        yield from part.state_dict().values()
    elif isinstance(part, torch.Tensor):
        yield part
    else:
        inner = part.values() if isinstance(part, dict) else part
        for value in inner if isinstance(part, dict | list | tuple) else vars_of(part):
            yield from tensors_of(value)


def vars_of(part):
    is_ours = type(part).__module__.startswith(("sklearn_g2d.", "sklearn.pipeline"))
    return vars(part).values() if is_ours and hasattr(part, "__dict__") else ()


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_stands_in_for_a_device_that_is_not_here(name):
    fitted, X = fit_on("cpu", name, n_steps=2)
    expected = fitted.score_samples(X)
    for part in _on_devices(fitted):
        part.device_ = "cuda:99"  # of another machine
    if name in CONVOLUTIONAL:
        with pytest.warns(UserWarning, match=r"'cuda:99'.* is not here.* detector\.to"):
            np.testing.assert_array_equal(fitted.score_samples(X), expected)
    with pytest.raises(ValueError, match="device='tpu9'"):
        fitted.to("tpu9")
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(fitted.to("cpu").score_samples(X), expected)


def test_parameters_and_what_the_user_has_fitted_stay_where_they_are():
    X, _ = make_data("patches of images")
    features = PretrainedFeatures(torch.nn.Conv2d(3, 4, 3), image_size=16).fit(X)
    detector = PatchDetector(features=features, random_state=0).fit(X)
    features.device_ = "cuda:99"
    detector.to("cpu")
    assert features.device_ == "cuda:99"
    assert detector.features_.device_ == "cpu"


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_cuda(name):
    trainers = []

    class Capture:
        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context, *, metadata=None):
            if metadata and "training" in metadata:
                trainers.append(metadata["training"].trainer)
                trainer_checks.check_waits_for_nothing(trainers[-1])

    detector, (X, _) = make_detectors(90)[name], make_data(name)
    if "device" in detector.get_params(deep=False):
        detector.set_params(device="cuda").set_callbacks(Capture()).fit(X)
        assert trainers


@EVERY_DEVICE
@pytest.mark.parametrize("name", ["AVID images", "G2D as published, images"])
def test_an_interrupted_fit_goes_on_where_it_was(device, name, tmp_path):
    expected, X = fit_on(device, name, n_steps=70)
    detector = clone(expected)
    checkpoint = Checkpoint(tmp_path / "checkpoint", every=0)
    with pytest.raises(KeyboardInterrupt):
        detector.set_callbacks(checkpoint, Interrupt(stage=0, step=60)).fit(make_data(name)[0])
    assert (tmp_path / "checkpoint").exists()
    detector.set_callbacks(checkpoint).fit(make_data(name)[0])
    np.testing.assert_array_equal(detector.score_samples(X), expected.score_samples(X))


@pytest.mark.parametrize("name", ["AVID images", "AVID as published, images"])
def test_all_that_maps_are_made_of_moves_to_the_device(name, monkeypatch):
    """On "meta" nothing is computed, but a tensor that was left on the CPU is an error."""

    @contextlib.contextmanager
    def on_meta(_, *networks):
        device = torch.device("meta")
        yield device, [copy.deepcopy(network).to(device) for network in networks]

    fitted, X = fit_on("cpu", name)
    monkeypatch.setattr(_models, "on_device", on_meta)
    with fitted._model.ready() as model:
        for _, images, maps in model._raw_maps(X):
            finished = model._finish(images, maps, model._figures, model.resizing())
            inpainted = model._inpainted(images, model._figures)
            assert {finished.device.type, inpainted.device.type} == {"meta"}


@EVERY_DEVICE
def test_a_search_by_two_workers(device):
    X, X_new = make_data("AVID images")
    y = np.repeat([1, -1], [len(X), len(X_new) - len(X)])
    detector = make_detectors(2)["AVID images"].set_params(random_state=0, device=device)
    grid, cv = {"top_fraction": [0.1, 0.5]}, [(np.arange(len(X)), np.arange(len(y)))]
    search = GridSearchCV(detector, grid, cv=cv, scoring="roc_auc", n_jobs=2, refit=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="false_alarm_rate")
        search.fit(X_new, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


TOGETHER = """
import sys, numpy as np, torch
from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import MaskedInpainting
torch.distributed.init_process_group()
X = np.random.default_rng(0).normal(size=(20, 1, 16, 16))
training = MaskedInpainting(max_steps=2, batch_size=4)
fitted = AVIDDetector(training=training, device=sys.argv[1], random_state=0).fit(X)
assert torch.device(fitted.device_).type == sys.argv[1]
fitted.save(sys.argv[2])
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), on_cuda])
def test_one_process_of_torchrun(tmp_path, device):
    script, saved = tmp_path / "fit.py", tmp_path / "fitted.skops"
    script.write_text(TOGETHER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "1", script, device, saved],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert AVIDDetector.load(saved).to("cpu").device_ == "cpu"


@pytest.mark.parametrize(("device", "own"), [("auto", "cuda:1"), ("cpu", "cuda:1")])
def test_messages_of_nccl_pass_through_the_gpu_of_the_process(machine, monkeypatch, device, own):
    machine(n_gpus=2)
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cuda:nccl")
    choose_own_gpu(device)
    assert not chosen  # alone
    monkeypatch.setattr(parallel, "n_processes", lambda: 2)
    choose_own_gpu(device)
    assert chosen == [own]
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cpu:gloo,cuda:gloo")
    choose_own_gpu(device)
    assert chosen == [own]


# Arithmetic


def settings():
    """What the process is set to for products on CUDA."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    precisions = [part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)]
    return *precisions, cudnn.deterministic, cudnn.benchmark


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs PyTorch 2.9")
@pytest.mark.parametrize("name", ["old", "new"])
def test_cuda_computes_in_full_float32_whatever_the_process_is_set_to(monkeypatch, name):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    start, cuda = settings(), torch.device("cuda")
    try:
        if name == "old":
            matmul.allow_tf32 = cudnn.benchmark = True
        else:
            matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32"
        before = settings()
        with arithmetic_of(torch.device("cpu")):
            assert settings() == before
        with arithmetic_of(cuda), arithmetic_of(cuda):
            assert settings() == ("ieee", "ieee", "ieee", True, False)
        with pytest.raises(ZeroDivisionError), arithmetic_of(cuda):
            raise ZeroDivisionError
        with cuda_arithmetic(tf32=True, deterministic=False), arithmetic_of(cuda):
            assert settings() == ("tf32", "tf32", "tf32", False, False)
        assert settings() == before
        with arithmetic_of(cuda):
            assert settings()[0] == "ieee"
    finally:
        if name == "old":
            matmul.allow_tf32 = False
        matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = start[:3]
        cudnn.deterministic, cudnn.benchmark = start[3:]


def test_doubling_by_slices_is_bilinear():
    maps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(_doubled(maps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", [UNet(channels=4), PatchNet(channels=4)])
def test_folded_networks_have_no_batch_norm_and_give_the_same(part):
    rng = torch.Generator().manual_seed(0)
    network = part.build(2, rng)
    x, mask = torch.randn(3, 2, 32, 32, generator=rng), torch.zeros(1, 1, 32, 32)
    inputs = (x, mask) if isinstance(part, UNet) else (x,)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.weight.data = 1 + 0.5 * torch.rand(norm.num_features, generator=rng)
        norm.bias.data = torch.randn(norm.num_features, generator=rng)
    network.train()(*inputs)
    fused, before = folded(network), network.state_dict()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    with torch.no_grad():
        expected = network.eval()(*inputs)
        assert_close(fused(*inputs), expected.numpy())
        assert torch.equal(copy.deepcopy(fused)(*inputs), fused(*inputs))  # for another device
        assert not torch.equal(fused(*inputs), expected)
    assert network.state_dict().keys() == before.keys()
