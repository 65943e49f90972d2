"""The parts of AVIDDetector: which ones, whose, what each parameter does, what callbacks see."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import (
    AdversarialInpainting,
    CellInpainting,
    CellNetwork,
    MaskedInpainting,
    PatchNet,
    UNet,
    _models,
)
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit


@pytest.fixture(scope="module", autouse=True)
def _short_batches():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_models, "_SCORING_PIXELS", 8 * 24 * 24)
        yield


@pytest.fixture(scope="module")
def images(make_stripes):
    return tuple(make_stripes(n, size=24, seed=n)[0] for n in (16, 6))


@pytest.fixture(scope="module")
def table():
    X = np.random.default_rng(0).normal(size=(110, 3))
    X = np.concatenate([X, X + 0.3 * np.random.default_rng(1).normal(size=X.shape)], axis=1)
    return X[:100], X[100:]


def make_detector(kind, **changed):
    """A detector of small networks, all parts given."""
    if kind == "images":
        detector = AVIDDetector(
            region_size=12,
            training=MaskedInpainting(max_steps=4, batch_size=4),
            inpainter=UNet(channels=3),
            detector=PatchNet(channels=3),
        )
    elif kind == "table":
        detector = AVIDDetector(
            training=CellInpainting(max_steps=4, batch_size=16),
            inpainter=CellNetwork((16,)),
            detector=CellNetwork((16,)),
        )
    elif kind == "paper images":
        detector = AVIDDetector.from_paper(
            "images",
            region_size=12,
            training__max_steps=4,
            training__batch_size=4,
            inpainter__channels=3,
            detector__channels=3,
        )
    else:
        detector = AVIDDetector.from_paper("tables", training__max_steps=4, training__batch_size=16)
    return detector.set_params(precision="float32", random_state=0).set_params(**changed)


@pytest.fixture(params=["images", "paper images", "table", "paper table"])
def kind(request):
    return request.param


@pytest.fixture
def data(kind, images, table):
    return images if kind.endswith("images") else table


# Defaults, and the paper


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("images", {"training": MaskedInpainting, "inpainter": UNet, "detector": PatchNet}),
        (
            "table",
            {"training": CellInpainting, "inpainter": CellNetwork, "detector": CellNetwork},
        ),
    ],
)
def test_parts_left_out_are_built_and_kept(images, table, name, parts):
    X = images[0] if name == "images" else table[0]
    stop = Watch(X[:2], stop_after=1)  # the default trains for thousands of steps
    detector = AVIDDetector(random_state=0).set_callbacks(stop).fit(X)
    assert (detector.training, detector.inpainter, detector.detector) == (None, None, None)
    for part, expected in parts.items():
        resolved = getattr(detector, f"{part}_")
        assert repr(resolved) == repr(expected())
        assert None not in resolved.get_params().values()


def test_parts_are_cloned(kind, data):
    detector = make_detector(kind).fit(data[0])
    for part in ("training", "inpainter", "detector"):
        given, used = getattr(detector, part), getattr(detector, f"{part}_")
        assert used is not given
        assert repr(used) == repr(given)


def test_a_nested_parameter_puts_the_default_part_there():
    detector = AVIDDetector().set_params(
        training__max_steps=3, inpainter__channels=4, detector__normalize=False
    )
    assert repr(detector.training) == "MaskedInpainting(max_steps=3)"
    assert repr(detector.inpainter) == "UNet(channels=4)"
    assert repr(detector.detector) == "PatchNet(normalize=False)"
    copied = clone(detector)
    assert repr(copied) == repr(detector)
    assert copied.training is not detector.training
    assert "MaskedInpainting(max_steps=3)" in repr(detector)
    assert "MaskedInpainting" in detector._repr_html_()


def test_the_published_method():
    images, tables = AVIDDetector.from_paper(), AVIDDetector.from_paper("tables")
    for detector in (images, tables):
        assert type(detector.training) is AdversarialInpainting
        assert (detector.training.gamma, detector.training.optimizer) == (0.4, "adam")
        assert detector.training.learning_rates == (2e-4, 2e-4)
        assert detector.training.betas == (0.9, 0.9)
        assert (detector.training.objective, detector.training.reconstruction_weight) == ("log", 1)
        assert (detector.combination, detector.error) == ("minimum", "absolute")
        assert detector.top_fraction == 0.1
        assert None not in [getattr(detector, p) for p in ("training", "inpainter", "detector")]
    assert (images.training.batch_size, tables.training.batch_size) == (16, 128)
    changed = AVIDDetector.from_paper(
        "images", training__gamma=0.2, detector__channels=4, inpainter=UNet(2), random_state=3
    )
    assert changed.training.gamma == 0.2
    assert changed.detector.channels == 4
    assert repr(changed.inpainter) == "UNet(channels=2)"
    assert changed.random_state == 3
    assert images.training.gamma == 0.4
    with pytest.raises(ValueError, match="Invalid parameter 'blocks'"):
        AVIDDetector.from_paper("images", training__blocks=2)


# Users' networks


class OwnInpainter(nn.Module):
    """Convolutions with batch norm, dropout, and a constant that is neither weight nor buffer."""

    stride = 2

    def __init__(self, n_channels):
        super().__init__()
        self.first = nn.Conv2d(n_channels + 1, 4, 5, padding=2)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, n_channels, 3, padding=1)
        self.scale = torch.rand(())

    def forward(self, x, mask):
        assert x.shape[2] % 2 == x.shape[3] % 2 == 0
        seen = torch.cat([x * (1 - mask), mask.expand(len(x), -1, -1, -1)], dim=1)
        h = nn.functional.dropout(self.norm(self.first(seen)).relu(), 0.2, self.training)
        return self.last(h) * self.scale


def own_patch_net(n_channels):
    return nn.Sequential(nn.Conv2d(n_channels, 4, 4, 4), nn.Dropout(0.3), nn.Conv2d(4, 1, 1))


class OwnCellInpainter(nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.last = nn.Linear(2 * n_features, n_features)

    def forward(self, x, mask):
        return self.last(torch.cat([x * (1 - mask), mask.expand_as(x)], dim=1))


def own_cell_detector(n_features):
    return nn.Sequential(nn.Linear(n_features, 8), nn.Dropout(0.3), nn.Linear(8, n_features))


def own_networks(kind):
    if kind.endswith("images"):
        return {"inpainter": OwnInpainter, "detector": own_patch_net}
    return {"inpainter": OwnCellInpainter, "detector": own_cell_detector}


def test_networks_of_ones_own(kind, data):
    """They are trained, repeat with the seed, and leave the global generators alone."""
    train, test = data
    networks, steps = own_networks(kind), {"training__max_steps": 30}
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, same, other = (
        make_detector(kind, **networks, **steps, random_state=seed).fit(train) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(4)
    again = make_detector(kind, **networks, **steps).fit(train)
    expected = first.anomaly_map(test)
    for detector in (same, again):
        np.testing.assert_array_equal(detector.anomaly_map(test), expected)
    assert (other.anomaly_map(test) != expected).any()
    untrained = make_detector(kind, **networks, training__max_steps=0).fit(train)
    for source in ("inpainter", "detector"):
        drawn = first.anomaly_map(test, source)
        assert np.isfinite(drawn).all()
        assert (drawn != untrained.anomaly_map(test, source)).any()
    assert first.inpaint(test).shape == test.shape
    assert first.inpainter_ is networks["inpainter"]
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        np.testing.assert_array_equal(copied.anomaly_map(test), expected)
        warm = (d.set_params(warm_start=True).fit(train) for d in (copied, copy.copy(first)))
        one, another = (detector.anomaly_map(test) for detector in warm)
        np.testing.assert_array_equal(one, another)
        assert (one != expected).any()


@pytest.mark.parametrize("own", ["inpainter", "detector"])
def test_a_network_of_ones_own_beside_one_of_the_package(kind, data, own):
    detector = make_detector(kind, **{own: own_networks(kind)[own]}).fit(data[0])
    assert np.isfinite(detector.score_samples(data[1])).all()
    assert len(np.unique(detector.score_samples(data[1]))) == len(data[1])


def test_an_own_detector_may_tell_the_size_of_regions(images):
    class Factory:
        region_pixels = (24, 24)

        def __call__(self, n_channels):
            return own_patch_net(n_channels)

    padded = {
        type(factory): make_detector("images", detector=factory).fit(images[0])
        for factory in (own_patch_net, Factory())
    }
    sizes = [d._model.preprocessor.padded_size for d in padded.values()]
    assert sizes == [(24, 24), (48, 48)]


@pytest.mark.parametrize(
    ("name", "networks", "error", "message"),
    [
        ("images", {"inpainter": lambda n: 5}, TypeError, "return a torch.nn.Module, got 5"),
        ("images", {"inpainter": nn.Identity()}, ValueError, "each fit needs a new one.*Ident"),
        (
            "images",
            {"inpainter": lambda n: OwnInpainter(n + 1)},
            RuntimeError,
            "expected input.* to have 3 channels",
        ),
        (
            "images",
            {"detector": lambda n: nn.Conv2d(n, 2, 3)},
            ValueError,
            r"logits of shape \(n, 1, height, width\); got \(2, 2,",
        ),
        (
            "images",
            {"detector": lambda n: nn.Flatten()},
            ValueError,
            r"logits of shape \(n, 1, height, width\)",
        ),
        (
            "table",
            {"detector": lambda n: nn.Linear(n, 1)},
            ValueError,
            r"logits of shape \(n, n_features\); got \(2, 1\)",
        ),
    ],
)
def test_networks_of_other_shapes_are_refused(images, table, name, networks, error, message):
    X = images[0] if name == "images" else table[0]
    with pytest.raises(error, match=message):
        make_detector(name, **networks).fit(X)


def test_an_inpainter_of_another_shape_is_refused(images):
    class Smaller(OwnInpainter):
        def forward(self, x, mask):
            return super().forward(x, mask)[:, :, 1:]

    with pytest.raises(ValueError, match=r"shape of its input, \(2, 1, 24, 24\); got \(2, 1, 23"):
        make_detector("images", inpainter=Smaller).fit(images[0])


@pytest.mark.parametrize(
    "optimizer", [torch.optim.RMSprop, lambda parameters, lr: torch.optim.SGD(parameters, lr)]
)
def test_optimisers_of_ones_own(kind, data, optimizer):
    detector = make_detector(kind, training__optimizer=optimizer).fit(data[0])
    assert np.isfinite(detector.score_samples(data[1])).all()


# After fit


def changed_parameters(detector, **also):
    """Every parameter of a detector by name, with another value."""
    is_table = isinstance(detector.inpainter, CellNetwork)
    layers = ((1, 3, 1), (2, 4, 2))
    changed = {
        "combination": "detector",
        "contamination": 0.4,
        "error": "absolute" if detector.error == "log" else "log",
        "per_location": True,
        "precision": "bfloat16",
        "random_state": 1,
        "top_fraction": 0.7,
        "training__batch_size": 7,
        "training__learning_rates": (1e-3, 2e-3),
        "training__max_steps": 3,
        "training__optimizer": "adamw",
        "training__schedule": lambda finished: 0.5 - finished / 4,
    }
    if is_table:
        changed |= {"inpainter__hidden_layer_sizes": (9,), "detector__hidden_layer_sizes": (9,)}
        changed["support_fraction"] = 0.6
    else:
        changed |= {
            "region_size": 9,
            "normalize_illumination": True,
            "inpainter__channels": 5,
            "inpainter__multipliers": (1, 2, 2, 4),
            "inpainter__first_skip": 1,
            "detector__channels": 5,
            "detector__layers": layers,
            "detector__normalize": not detector.detector.normalize,
            "detector__negative_slope": 0.3,
            "detector__region_pixels": (24, 30),
        }
    if isinstance(detector.training, AdversarialInpainting):
        # The best moment may be an early one, whatever follows.
        changed |= {
            "training__gamma": 1.0,
            "training__max_steps": 0,
            "training__betas": (0.5, 0.999),
            "training__objective": "squares",
            "training__reconstruction_weight": 0.0,
        }
    else:
        changed |= {
            "training__detector_every": 2,
            "training__reconstruction_weight": 3.0,
            "training__adversarial_weight": 1.0,
            "training__hidden_fraction": 0.2,
            "training__exchanged_fraction": 0.5,
            "training__averaging_decay": 0.0,
        }
        changed |= (
            {"training__far_fraction": 1.0} if is_table else {"training__block_sizes": (0.6,)}
        )
    return changed | also


# What does not move decisions, and why.
WITHOUT_EFFECT = {
    "device": "there is only one here",
    "image_shape": "images say it themselves, and tables have none",
    "verbose": "only logs",
    "warm_start": "nothing to continue",
    "training": "a part, whose parameters are tried",
    "inpainter": "a part, whose parameters are tried",
    "detector": "a part, whose parameters are tried",
}
REFUSED_ON_TABLES = {"region_size": 9, "normalize_illumination": True}
REFUSED_ON_IMAGES = {"support_fraction": 0.6}
OF_LARGER_IMAGES = {"training__whole_images"}  # tried below


def test_every_parameter_moves_decisions_or_is_refused(kind, data):
    train, test = data
    detector = make_detector(kind)
    expected = detector.fit(train).decision_function(test)
    changed = changed_parameters(detector)
    refused = REFUSED_ON_TABLES if kind.endswith("table") else REFUSED_ON_IMAGES
    without_effect = {*WITHOUT_EFFECT, *OF_LARGER_IMAGES}
    assert set(detector.get_params()) - without_effect == {*changed, *refused}
    for name, value in changed.items():
        found = make_detector(kind, **{name: value}).fit(train).decision_function(test)
        if name == "per_location" and kind.endswith("table"):
            np.testing.assert_array_equal(found, expected)  # as it always is
        else:
            assert (found != expected).any(), name
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"{name}={value} is for (images|tables)"):
            make_detector(kind, **{name: value}).fit(train)


@pytest.mark.parametrize(("region_size", "moves"), [(10, True), (16, False)])
def test_training_on_whole_images_instead_of_crops_of_four_regions(region_size, moves):
    X = np.random.default_rng(0).normal(size=(8, 1, 64, 64))
    changed = {"region_size": region_size, "detector__region_pixels": (8, 20)}
    crops, whole = (
        make_detector("paper images", **changed, training__whole_images=w).fit(X).inpaint(X)
        for w in (False, True)
    )
    assert (crops != whole).any() == moves


def test_parameters_set_after_fit_change_nothing(kind, data):
    train, test = data
    detector = make_detector(kind).fit(train)

    def results():
        return [
            detector.score_samples(test),
            detector.predict(test),
            detector.p_values(test),
            detector.inpaint(test),
            *(
                method(test, source=source)
                for method in (detector.anomaly_map, detector.predict_mask, detector.region_scores)
                for source in ("combined", "inpainter", "detector")
            ),
        ]

    before = results()
    detector.set_params(**changed_parameters(detector), image_shape=(1, 2, 3), device="cuda:7")
    for found, expected in zip(results(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    parts = dict.fromkeys(("training", "inpainter", "detector"))
    detector.set_params(**parts, normalize_illumination=False, region_size="auto")
    for found, expected in zip(results(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


# Searches


def search(detector, grid, X, y):
    found = GridSearchCV(
        detector, grid, scoring=SCORERS["outlier_roc_auc"], cv=NormalOnlySplit(2)
    ).fit(X, y)
    return found.cv_results_["mean_test_score"]


@pytest.mark.parametrize(
    "grid",
    [
        {"training__learning_rates": [(1e-2, 1e-2), (1e-4, 1e-4)]},
        {"training": [MaskedInpainting(max_steps=30), AdversarialInpainting(max_steps=3)]},
        {"inpainter__channels": [2, 4]},
    ],
    ids=["rates", "training", "channels"],
)
def test_searches_over_parts(make_stripes, grid):
    X, masks = make_stripes(24, 8, size=24, seed=0)
    y = np.where(masks.any(axis=(1, 2)), -1, 1)
    small = {"inpainter": UNet(channels=2), "detector": PatchNet(channels=2)}
    training = None if "training" in grid else MaskedInpainting(max_steps=20)
    detector = AVIDDetector(region_size=12, training=training, **small, random_state=0)
    first, second = search(detector, grid, X, y)
    assert np.isfinite([first, second]).all()
    assert first != second


# Callbacks


class Watch:
    """Lets the detector of each step judge; stops training after `stop_after` steps."""

    def __init__(self, X, stop_after=None):
        self.X, self.stop_after = X, stop_after
        self.results = []

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name != "step":
            return False
        assert fitted_estimator is not estimator
        self.results.append(judge(fitted_estimator, self.X))
        return len(self.results) == self.stop_after

    def teardown(self, estimator, context):
        pass


def judge(detector, X):
    return [
        detector.score_samples(X),
        detector.decision_function(X),
        detector.p_values(X),
        detector.anomaly_map(X),
        detector.predict_mask(X),
        detector.inpaint(X),
    ]


def assert_equal_results(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("contamination", ["auto", 0.2])
def test_a_callback_is_given_a_detector_as_of_each_step(kind, data, contamination):
    train, test = data
    # Of few rows of a table, further networks are trained at the end only.
    make = partial(make_detector, kind, contamination=contamination, support_fraction=1.0)
    expected = judge(make().fit(train), test)
    watch = Watch(test)
    detector = make().set_callbacks(watch)
    assert_equal_results(judge(detector.fit(train), test), expected)  # training went on alike
    assert len(watch.results) == 4
    assert_equal_results(watch.results[-1], expected)
    first, last = watch.results[0][0], watch.results[-1][0]
    # The best moment of published networks may be the first.
    assert (first != last).any() or kind.startswith("paper")
    stopped = Watch(test, stop_after=2)
    detector = make().set_callbacks(stopped)
    assert_equal_results(watch.results[1], judge(detector.fit(train), test))


def test_a_watched_network_of_ones_own_trains_on_alike(kind, data):
    train, test = data
    networks = own_networks(kind)
    expected = judge(make_detector(kind, **networks).fit(train), test)
    watch = Watch(test)
    detector = make_detector(kind, **networks).set_callbacks(watch).fit(train)
    assert_equal_results(judge(detector, test), expected)
    assert_equal_results(watch.results[-1], expected)
