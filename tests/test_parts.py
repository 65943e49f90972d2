"""A G2DOutlierDetector is put together from parts, whose parameters all mean something."""

import copy
import logging
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_g2d import G2DOutlierDetector, features, g2d
from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    NeighborProfile,
    OrientedGradients,
    PretrainedFeatures,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.g2d import (
    ConvGenerator,
    ConvNetwork,
    GaussianCloud,
    NetworkClassifier,
    RowGenerator,
    WassersteinGAN,
)
from sklearn_g2d.metrics import SCORERS, outlier_roc_auc_score
from sklearn_g2d.model_selection import NormalOnlySplit

SHORT = NetworkClassifier(n_members=2, max_steps=20)


def make_table(n, seed):
    """Correlated columns of three clusters."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) @ np.diag([1, 2, 3], -1)[:, :4] + 5 * rng.integers(
        3, size=(n, 4)
    )


def make_images(n, seed):
    """Upright waves of 8 x 8 pixels, the last quarter of them with a patch turned."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(8) * np.pi / 2 + rng.uniform(0, 6, size=(n, 1, 1, 1)))
    X = waves * np.ones((8, 1)) + 0.3 * rng.normal(size=(n, 1, 8, 8))
    X[-n // 4 :, :, 2:6, 2:6] = X[-n // 4 :, :, 2:6, 2:6].swapaxes(2, 3)
    return X


class Edges(nn.Sequential):
    """Stands for a network that was trained."""

    def __init__(self, n_channels):
        super().__init__(nn.Conv2d(3, n_channels, 3), nn.ReLU(), nn.Conv2d(n_channels, 6, 3))
        for parameter in self.parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))

    def __repr__(self):
        return f"Edges({self[0].out_channels})"


# Every detector in which a parameter could matter, with rows to fit on and to score.
TABLE = make_table(80, 0), np.concatenate([make_table(20, 1), 3 * make_table(20, 2)])
IMAGES = make_images(60, 0)[:45], make_images(40, 1)
DETECTORS = {
    "cloud": (
        G2DOutlierDetector(
            features="passthrough",
            scaler=SquashingScaler(),
            generator=GaussianCloud(),
            classifier=SHORT,
            random_state=0,
        ),
        TABLE,
    ),
    "WGAN": (
        G2DOutlierDetector(
            features="passthrough",
            scaler=SquashingScaler(),
            generator=WassersteinGAN(max_steps=6, n_members=2, n_snapshots=3),
            classifier=SHORT,
            random_state=0,
        ),
        TABLE,
    ),
    "gradients": (
        G2DOutlierDetector(
            features=make_pipeline(OrientedGradients(), ResidualPCA()),
            scaler=SquashingScaler(bound=math.inf, range_weight=0.0, common_scale=True),
            generator=GaussianCloud(),
            classifier=SHORT,
            random_state=0,
        ),
        IMAGES,
    ),
    "pretrained": (
        G2DOutlierDetector(
            features=PretrainedFeatures(Edges(4), image_size=16),
            scaler=SquashingScaler(bound=math.inf, range_weight=0.0, common_scale=True),
            generator=GaussianCloud(),
            classifier=SHORT,
            random_state=0,
        ),
        IMAGES,
    ),
    "convolutions": (
        G2DOutlierDetector.from_paper(
            data="images",
            generator__max_steps=4,
            generator__batch_size=8,
            generator__n_critic=2,
            generator__generator_network__channels=2,
            generator__critic_network__channels=2,
            classifier__max_steps=4,
            classifier__network__channels=2,
            random_state=0,
        ),
        IMAGES,
    ),
    "rows": (
        G2DOutlierDetector.from_paper(
            data="tables",
            generator__max_steps=8,
            generator__n_snapshots=6,
            generator__batch_size=8,
            generator__n_critic=2,
            classifier__max_steps=4,
            random_state=0,
        ),
        TABLE,
    ),
}


# Users' networks


def make_generator(latent_dim, shape):
    return nn.Sequential(nn.Linear(latent_dim, math.prod(shape)), nn.Unflatten(1, shape))


def make_network(shape, n_outputs):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.Tanh(), nn.Linear(8, n_outputs)
    )


# Every parameter has an effect

# A value of every parameter other than those that `DETECTORS` have, or a list of values, one of
# which is another one.
OTHER_VALUES = {
    (G2DOutlierDetector, "features"): ResidualPCA(1),
    (G2DOutlierDetector, "scaler"): StandardScaler(),
    (G2DOutlierDetector, "generator"): WassersteinGAN(max_steps=0, n_members=1),
    (G2DOutlierDetector, "n_neighbors"): 3,
    (G2DOutlierDetector, "measure"): ["distance", "reconstruction"],
    (G2DOutlierDetector, "n_generated"): 1.5,
    (G2DOutlierDetector, "classifier"): LogisticRegression(),
    (G2DOutlierDetector, "contamination"): 0.3,
    (G2DOutlierDetector, "threshold"): ["conformal", "probability"],
    (G2DOutlierDetector, "support_fraction"): 0.7,
    (G2DOutlierDetector, "image_shape"): (1, 2, 2),
    (G2DOutlierDetector, "precision"): "bfloat16",
    (G2DOutlierDetector, "random_state"): 1,
    (GaussianCloud, "spread"): 1.0,
    (GaussianCloud, "tail"): 0.5,
    (WassersteinGAN, "max_steps"): 5,
    (WassersteinGAN, "batch_size"): 32,
    (WassersteinGAN, "n_critic"): 3,
    (WassersteinGAN, "gradient_penalty"): 1.0,
    (WassersteinGAN, "optimizer"): "sgd",
    (WassersteinGAN, "learning_rate"): 1e-2,
    (WassersteinGAN, "betas"): (0.9, 0.99),
    (WassersteinGAN, "schedule"): "cosine",
    (WassersteinGAN, "n_members"): 3,
    (WassersteinGAN, "latent_dim"): 5,
    (WassersteinGAN, "hidden_layer_sizes"): (8,),
    (WassersteinGAN, "spread"): 1.0,
    (WassersteinGAN, "tail"): 0.5,
    (WassersteinGAN, "snapshots"): lambda snapshots: snapshots[1:2],
    (WassersteinGAN, "n_snapshots"): 1,
    (WassersteinGAN, "generator_network"): make_generator,
    (WassersteinGAN, "critic_network"): make_network,
    (NetworkClassifier, "hidden_layer_sizes"): (8,),
    (NetworkClassifier, "n_members"): 3,
    (NetworkClassifier, "max_steps"): 3,
    (NetworkClassifier, "batch_size"): 8,
    (NetworkClassifier, "optimizer"): "adam",
    (NetworkClassifier, "learning_rate"): 1e-3,
    (NetworkClassifier, "schedule"): "cosine",
    (NetworkClassifier, "network"): make_network,
    (ConvGenerator, "channels"): 3,
    (ConvNetwork, "channels"): 3,
    (ConvGenerator, "deviation"): 1.0,
    (RowGenerator, "hidden_layer_sizes"): (4,),
    (RowGenerator, "deviation"): 1.0,
    (WassersteinGAN, "epoch_steps"): 2,
    (SquashingScaler, "bound"): 2.0,
    (SquashingScaler, "range_weight"): 0.75,
    (SquashingScaler, "common_scale"): [False, True],
    (OrientedGradients, "image_shape"): (1, 4, 16),
    (OrientedGradients, "n_cells"): (2, 4),
    (OrientedGradients, "n_orientations"): 6,
    (OrientedGradients, "layout_weight"): 0.25,
    (PretrainedFeatures, "model"): Edges(5),
    (PretrainedFeatures, "image_shape"): (1, 4, 16),
    (PretrainedFeatures, "layers"): ["0"],
    (PretrainedFeatures, "image_size"): 24,
    (PretrainedFeatures, "margin"): 4,
    (PretrainedFeatures, "normalize"): False,
    (PretrainedFeatures, "precision"): "bfloat16",
    (ResidualPCA, "n_components"): 3,
}

# Parameters that change no score, and where their docstrings say so.
WITHOUT_EFFECT = {
    (G2DOutlierDetector, "device"): "Device of training",  # scores agree: tests/test_devices.py
    (G2DOutlierDetector, "verbose"): "reports the end of each stage",
    (PretrainedFeatures, "engine"): "rows of both engines agree",
    (PretrainedFeatures, "device"): "rows of all devices agree",
    (G2DOutlierDetector, "warm_start"): "previous call",  # of which there is none
}
WITHOUT_EFFECT_AS_PUBLISHED = {
    (G2DOutlierDetector, "measure"): "Ignored if `n_neighbors` is 0",
    (WassersteinGAN, "spread"): "gnored by other networks",
    (WassersteinGAN, "tail"): "gnored by other networks",
}
WITHOUT_EFFECT_ON_CONVOLUTIONS = {
    **WITHOUT_EFFECT_AS_PUBLISHED,
    (WassersteinGAN, "hidden_layer_sizes"): "gnored by other networks",
    (NetworkClassifier, "hidden_layer_sizes"): "gnored by other networks",
}
WITHOUT_EFFECT_IN = {
    "cloud": {},
    "WGAN": {(WassersteinGAN, "epoch_steps"): 'Ignored if `snapshots` is "geometric"'},
    "gradients": {(SquashingScaler, "range_weight"): "common_scale"},
    "pretrained": {(SquashingScaler, "range_weight"): "common_scale"},
    "convolutions": WITHOUT_EFFECT_ON_CONVOLUTIONS,
    "rows": {
        **WITHOUT_EFFECT_AS_PUBLISHED,
        (G2DOutlierDetector, "image_shape"): "if the rows given to `fit` are pixels of images",
    },
}


def parameters_of(detector):
    """Name every parameter of a detector and of its parts from this package, and its owner."""
    params = detector.get_params(deep=True)
    for name in params:
        owner_name, _, own_name = name.rpartition("__")
        owner = params[owner_name] if owner_name else detector
        if type(owner).__module__.startswith("sklearn_g2d."):
            yield name, type(owner), own_name


def other_values(owner, name, now):
    values = OTHER_VALUES[owner, name]
    values = values if isinstance(values, list) else [values]
    others = [value for value in values if repr(value) != repr(now)]
    assert others, f"{name} has this value already"
    return others


def outcome_of(detector, X, X_test):
    """Scores relative to the threshold, which depend on all that a fit does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return clone(detector).fit(X).decision_function(X_test)


@cache
def expected_outcome(kind):
    detector, data = DETECTORS[kind]
    return outcome_of(detector, *data)


def has_effect(kind, name, value):
    """Whether a parameter changes what a fit gives, by an error or by other numbers."""
    detector, data = DETECTORS[kind]
    changed = clone(detector).set_params(**{name: value})
    try:
        outcome = outcome_of(changed, *data)
    except ValueError:
        return True
    return bool(np.abs(outcome - expected_outcome(kind)).max() > 1e-9)


ALL_PARAMETERS = [
    pytest.param(kind, name, owner, own_name, id=f"{kind}-{name}")
    for kind, (detector, _) in DETECTORS.items()
    for name, owner, own_name in parameters_of(detector)
]


@pytest.mark.parametrize(("kind", "name", "owner", "own_name"), ALL_PARAMETERS)
def test_every_parameter_matters_or_says_where_it_does_not(kind, name, owner, own_name):
    reason = {**WITHOUT_EFFECT, **WITHOUT_EFFECT_IN[kind]}.get((owner, own_name))
    if reason is not None:
        assert reason in " ".join(owner.__doc__.split())
        return
    assert (owner, own_name) in OTHER_VALUES, (
        f"Give {owner.__name__}.{own_name} a value in OTHER_VALUES, or a reason in WITHOUT_EFFECT."
    )
    now = DETECTORS[kind][0].get_params()[name]
    assert any(has_effect(kind, name, value) for value in other_values(owner, own_name, now))


def test_every_part_is_among_those_whose_parameters_are_tried():
    tried = {owner for _, _, owner, _ in (p.values for p in ALL_PARAMETERS)}
    public = {
        part
        for module in (g2d, features)
        for part in (getattr(module, name) for name in module.__all__)
        if isinstance(part, type) and issubclass(part, BaseEstimator)
    }
    # The profile's parameters are the detector's own; the others have none.
    assert public - tried == {NeighborProfile, ColumnMinMaxScaler, GlobalMinMaxScaler}
    assert not GlobalMinMaxScaler().get_params() | ColumnMinMaxScaler().get_params()
    assert set(NeighborProfile().get_params()) == {"n_neighbors", "measure"}


def test_the_tables_name_no_parameter_that_is_gone():
    known = {(owner, own_name) for _, _, owner, own_name in (p.values for p in ALL_PARAMETERS)}
    named = {*OTHER_VALUES, *WITHOUT_EFFECT, *WITHOUT_EFFECT_ON_CONVOLUTIONS}
    assert named <= known
    assert OTHER_VALUES.keys().isdisjoint(WITHOUT_EFFECT)


def test_a_parameter_without_effect_would_be_found(caplog):
    with caplog.at_level(logging.ERROR, logger="sklearn_g2d"):
        assert not has_effect("cloud", "verbose", 1)
    assert not has_effect("cloud", "warm_start", False)
    assert has_effect("cloud", "device", "abacus")  # an error
    assert has_effect("cloud", "classifier__max_steps", 19)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_fitted_detector_does_not_follow_set_params(kind):
    detector, (X, X_test) = DETECTORS[kind]
    detector = clone(detector).fit(X)
    methods = {
        "scores": lambda: detector.score_samples(X_test),
        "decisions": lambda: detector.decision_function(X_test),
        "labels": lambda: detector.predict(X_test),
        "probabilities": lambda: detector.predict_proba(X_test),
        "p-values": lambda: detector.p_values(X_test),
    }
    if kind not in ("gradients", "pretrained"):  # which have no inverse
        methods["outliers"] = lambda: detector.sample_outliers(5, random_state=3)
    before = {name: method() for name, method in methods.items()}
    # Parameters of parts before the parts.
    for name, owner, own_name in sorted(parameters_of(detector), key=lambda p: -p[0].count("__")):
        if (owner, own_name) in OTHER_VALUES:
            now = detector.get_params()[name]
            detector.set_params(**{name: other_values(owner, own_name, now)[0]})
    detector.set_params(device="abacus")
    for name, method in methods.items():
        np.testing.assert_array_equal(method(), before[name], err_msg=name)


# What a fit keeps


@pytest.mark.parametrize(
    ("detector", "data", "expected"),
    [
        (
            G2DOutlierDetector(random_state=0),
            TABLE,
            {
                "features_": "'passthrough'",
                "scaler_": "SquashingScaler()",
                "generator_": "GaussianCloud()",
                "classifier_": "NetworkClassifier()",
                "measure_": "'distance'",
            },
        ),
        (
            G2DOutlierDetector(random_state=0),
            IMAGES,
            {
                "features_": "Pipeline(steps=[('orientedgradients', OrientedGradients()),\n"
                "                ('residualpca', ResidualPCA())])",
                "scaler_": "SquashingScaler(bound=inf, common_scale=True, range_weight=0.0)",
                "generator_": "GaussianCloud()",
                "classifier_": "NetworkClassifier()",
                "measure_": "'reconstruction'",
            },
        ),
        (
            DETECTORS["WGAN"][0],
            TABLE,
            {
                "generator_": "WassersteinGAN(max_steps=6, n_members=2, n_snapshots=3)",
                "classifier_": "NetworkClassifier(max_steps=20, n_members=2)",
            },
        ),
        (DETECTORS["convolutions"][0], IMAGES, {"scaler_": "GlobalMinMaxScaler()"}),
    ],
    ids=["table", "images", "WGAN", "convolutions"],
)
def test_a_fit_keeps_the_parts_that_it_used(detector, data, expected):
    detector = clone(detector)
    given = repr(detector)
    fitted = clone(detector).fit(data[0])
    for name, text in expected.items():
        assert repr(getattr(fitted, name)) == text
    assert repr(fitted) == given  # None stays None
    for name in ("features", "scaler", "generator", "classifier"):
        used = getattr(fitted, f"{name}_")
        assert used is not getattr(fitted, name) or isinstance(used, str)
        for key, owner, own_name in parameters_of(used) if not isinstance(used, str) else ():
            if (owner, own_name) != (OrientedGradients, "image_shape"):  # None: images tell
                assert used.get_params()[key] is not None, (name, key)


def test_the_fitted_parts_are_what_scores():
    """By hand: scaler, neighbour profile, then the mean log-odds of the networks."""
    X, X_test = TABLE
    detector = clone(DETECTORS["cloud"][0]).fit(X)
    points = detector.scaler_.transform(X_test)
    profile = detector.profile_.transform(points)
    scaler = SquashingScaler().fit(X)
    np.testing.assert_array_equal(points, scaler.transform(X_test))
    by_hand = NeighborProfile(20).fit(scaler.transform(X))
    np.testing.assert_array_equal(profile, by_hand.transform(points))
    proba = detector.predict_proba(X_test)[:, 1]
    np.testing.assert_allclose(special.logit(proba), detector.score_samples(X_test), atol=1e-6)


def test_a_fit_leaves_the_given_parts_alone():
    parts = {
        "features": make_pipeline(StandardScaler()),
        "scaler": SquashingScaler(bound=4.0),
        "generator": WassersteinGAN(max_steps=1, n_members=1),
        "classifier": RandomForestClassifier(3),
    }
    before = {name: (repr(part), set(vars(part))) for name, part in parts.items()}
    G2DOutlierDetector(**parts, random_state=0).fit(TABLE[0])
    assert {name: (repr(part), set(vars(part))) for name, part in parts.items()} == before
    assert parts["classifier"].random_state is None


# Parameters of parts that are None


@pytest.mark.parametrize(
    ("name", "value", "part", "expected"),
    [
        ("generator__spread", 1.0, "generator", GaussianCloud(spread=1.0)),
        ("generator__tail", 0.0, "generator", GaussianCloud(tail=0.0)),
        (
            "classifier__hidden_layer_sizes",
            (4, 4),
            "classifier",
            NetworkClassifier(hidden_layer_sizes=(4, 4)),
        ),
        ("scaler__bound", 3.0, "scaler", SquashingScaler(bound=3.0)),
        (
            "features__residualpca__n_components",
            3,
            "features",
            make_pipeline(OrientedGradients(), ResidualPCA(3)),
        ),
    ],
)
def test_a_parameter_of_a_part_that_is_none(name, value, part, expected):
    detector = G2DOutlierDetector().set_params(**{name: value, "n_neighbors": 7})
    assert repr(getattr(detector, part)) == repr(expected)
    assert detector.get_params()[name] == value
    assert detector.n_neighbors == 7
    others = {"generator", "classifier", "scaler", "features"} - {part}
    assert all(getattr(detector, other) is None for other in others)
    piped = make_pipeline(StandardScaler(), G2DOutlierDetector())
    piped.set_params(**{f"g2doutlierdetector__{name}": value})
    assert repr(piped[-1]) == repr(G2DOutlierDetector(**{part: expected}))
    assert getattr(clone(piped)[-1].set_params(**{part: None}), part) is None


def test_a_part_and_its_parameter_at_once():
    for names in (["generator", "generator__max_steps"], ["generator__max_steps", "generator"]):
        values = {"generator": WassersteinGAN(), "generator__max_steps": 9}
        detector = G2DOutlierDetector().set_params(**{name: values[name] for name in names})
        assert repr(detector.generator) == "WassersteinGAN(max_steps=9)"
    detector.set_params(generator=None, generator__spread=1.5)
    assert repr(detector.generator) == "GaussianCloud(spread=1.5)"


def test_detectors_do_not_share_a_part_that_was_none():
    first, second = (G2DOutlierDetector().set_params(generator__tail=1.0) for _ in range(2))
    first.set_params(generator__spread=9.0)
    assert second.generator.spread == "auto"
    assert G2DOutlierDetector().set_params(generator__tail=1.0).generator.spread == "auto"


def test_an_unknown_parameter_of_a_part():
    for name in ("generator__max_steps", "classifier__spread", "device__spread", "forest__spread"):
        with pytest.raises((ValueError, AttributeError), match=r"Invalid parameter|no attribute"):
            G2DOutlierDetector().set_params(**{name: 1})


# Searches, clones, and text and HTML representations


def test_a_grid_over_parts(blobs):
    _, X, y = blobs
    search = GridSearchCV(
        G2DOutlierDetector(classifier=SHORT, random_state=0),
        {"generator": [GaussianCloud(), WassersteinGAN(max_steps=10)]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        n_jobs=2,
        error_score="raise",
    ).fit(X, y)
    by_hand = [
        np.mean(
            [
                SCORERS["outlier_roc_auc"](
                    G2DOutlierDetector(generator=generator, classifier=SHORT, random_state=0).fit(
                        X[train]
                    ),
                    X[test],
                    y[test],
                )
                for train, test in NormalOnlySplit(2).split(X, y)
            ]
        )
        for generator in (GaussianCloud(), WassersteinGAN(max_steps=10))
    ]
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], by_hand)
    assert by_hand[0] != by_hand[1]
    assert (
        search.best_estimator_.generator_.get_params()
        == search.best_params_["generator"].get_params()
    )


def test_a_grid_over_parameters_of_parts_that_are_none(blobs):
    _, X, y = blobs
    grid = {
        "generator__spread": [0.2, 2.0],
        "classifier__hidden_layer_sizes": [(2,), (16,)],
        "n_neighbors": [5, 20],
    }
    detector = G2DOutlierDetector(random_state=0)
    search = GridSearchCV(
        detector,
        grid,
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        n_jobs=2,
        error_score="raise",
    ).fit(X, y)
    assert detector.generator is detector.classifier is None
    assert len(set(search.cv_results_["mean_test_score"])) >= 6  # ties would be chance
    best = search.best_estimator_
    assert best.generator_.spread == search.best_params_["generator__spread"]
    sizes = search.best_params_["classifier__hidden_layer_sizes"]
    assert best.classifier_.hidden_layer_sizes == sizes
    by_hand = G2DOutlierDetector(
        generator=GaussianCloud(spread=best.generator_.spread),
        classifier=NetworkClassifier(hidden_layer_sizes=sizes),
        n_neighbors=search.best_params_["n_neighbors"],
        random_state=0,
    ).fit(X)
    np.testing.assert_array_equal(best.score_samples(X), by_hand.score_samples(X))


@pytest.mark.parametrize("kind", DETECTORS)
def test_clones_and_texts(kind):
    detector, (X, X_test) = DETECTORS[kind]
    copied = clone(detector)
    assert repr(copied) == repr(detector)
    assert copied.generator is not detector.generator
    copied.set_params(classifier__max_steps=1)
    assert detector.classifier.max_steps > 1
    # The text says all: it can be evaluated.
    names = {
        **vars(g2d),
        **vars(features),
        "Edges": Edges,
        "inf": math.inf,
        "make_pipeline": make_pipeline,
    }
    from sklearn.pipeline import Pipeline

    text = repr(detector)
    again = eval(text, {**names, "G2DOutlierDetector": G2DOutlierDetector, "Pipeline": Pipeline})  # noqa: S307
    assert repr(again) == text
    if "..." not in text:
        np.testing.assert_array_equal(outcome_of(again, X, X_test), expected_outcome(kind))


def test_html_names_parts_and_their_parameters():
    html = DETECTORS["convolutions"][0]._repr_html_()
    for text in ("WassersteinGAN", "NetworkClassifier", "ConvGenerator", "n_critic", "channels"):
        assert text in html
    assert "WassersteinGAN" in clone(DETECTORS["WGAN"][0]).fit(TABLE[0])._repr_html_()
    assert "WassersteinGAN" not in G2DOutlierDetector()._repr_html_()


def test_deep_parameters_have_nested_names():
    params = DETECTORS["convolutions"][0].get_params(deep=True)
    assert params["generator__generator_network__channels"] == 2
    assert params["classifier__network"].channels == 2
    shallow = DETECTORS["convolutions"][0].get_params(deep=False)
    assert not any("__" in name for name in shallow)
    assert set(shallow) < set(params)


def test_a_detector_of_parts_in_a_pipeline():
    X, X_test = TABLE
    detector = DETECTORS["WGAN"][0]
    piped = make_pipeline(StandardScaler(), clone(detector))
    piped.set_params(g2doutlierdetector__generator__max_steps=3).fit(X)
    scaler = StandardScaler().fit(X)
    alone = clone(detector).set_params(generator__max_steps=3).fit(scaler.transform(X))
    np.testing.assert_array_equal(
        piped.score_samples(X_test), alone.score_samples(scaler.transform(X_test))
    )
    assert piped[-1].n_iter_ == 3


# From the paper


def test_from_paper_on_tables():
    """Section 4.1, the gaps filled from the authors' code."""
    detector = G2DOutlierDetector.from_paper(data="tables")
    assert isinstance(detector, G2DOutlierDetector)
    params = detector.get_params()
    expected = {
        "features": "passthrough",
        "n_neighbors": 0,
        "n_generated": 1.0,
        "threshold": "probability",
        "contamination": "auto",
        "support_fraction": 1.0,
        "generator__max_steps": 2000,
        "generator__batch_size": 64,
        "generator__n_critic": 5,
        "generator__gradient_penalty": 10.0,
        "generator__optimizer": "adam",
        "generator__learning_rate": 1e-4,
        "generator__n_members": 1,
        "generator__latent_dim": 100,
        "generator__spread": 0.0,
        "generator__tail": 0.0,
        "generator__snapshots": "loss",
        "generator__n_snapshots": 10,
        "generator__epoch_steps": "auto",
        "generator__hidden_layer_sizes": (32, 64, 128),
        "generator__generator_network__hidden_layer_sizes": (128, 64, 32),
        "classifier__hidden_layer_sizes": (64, 64),
        "classifier__n_members": 1,
        "classifier__max_steps": 1000,
        "classifier__batch_size": 32,
        "classifier__optimizer": "sgd",
        "classifier__learning_rate": 1e-2,
    }
    assert {name: params[name] for name in expected} == expected
    assert isinstance(params["scaler"], ColumnMinMaxScaler)
    assert isinstance(params["generator__generator_network"], RowGenerator)


def test_from_paper_on_images():
    """Fig. 3 of the paper at a sixteenth of the authors' channels."""
    params = G2DOutlierDetector.from_paper(data="images").get_params()
    expected = {
        "features": "passthrough",
        "n_neighbors": 0,
        "threshold": "probability",
        "generator__max_steps": 300,
        "generator__n_critic": 1,
        "generator__latent_dim": 100,
        "generator__snapshots": "loss",
        "generator__epoch_steps": 3,
        "generator__generator_network__channels": 16,
        "generator__critic_network__channels": 16,
        "classifier__network__channels": 16,
        "classifier__max_steps": 200,
        "classifier__optimizer": "sgd",
    }
    assert {name: params[name] for name in expected} == expected
    assert isinstance(params["scaler"], GlobalMinMaxScaler)
    assert isinstance(params["generator__generator_network"], ConvGenerator)
    assert isinstance(params["generator__critic_network"], ConvNetwork)
    assert isinstance(params["classifier__network"], ConvNetwork)


@pytest.mark.parametrize("data", ["tables", "images"])
def test_changes_of_the_paper_are_those_of_set_params(data):
    changes = {
        "generator__n_critic": 2,
        "classifier": LogisticRegression(),
        "contamination": 0.1,
        "random_state": 3,
    }
    changed = G2DOutlierDetector.from_paper(data=data, **changes)
    plain = G2DOutlierDetector.from_paper(data=data)
    assert repr(changed) == repr(plain.set_params(**changes))
    assert changed.generator.n_critic == 2
    published = G2DOutlierDetector.from_paper(data=data).generator
    assert published.n_critic == {"tables": 5, "images": 1}[data]
    # No part is left to be chosen by `fit`.
    parts = ("features", "scaler", "generator", "classifier")
    assert all(getattr(plain, part) is not None for part in parts)


def test_from_paper_of_a_subclass_is_one():
    class Mine(G2DOutlierDetector):
        pass

    assert type(Mine.from_paper(data="tables")) is Mine


def test_from_paper_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"data must be .*tables.*images.*, got 'x'"):
        G2DOutlierDetector.from_paper(data="x")
    with pytest.raises(ValueError, match="Invalid parameter 'max_steps'"):
        G2DOutlierDetector.from_paper(data="tables", max_steps=5)
    with pytest.raises(ValueError, match="Invalid parameter 'spreads'"):
        G2DOutlierDetector.from_paper(data="images", generator__spreads=5)
    with pytest.raises(ValueError, match="Invalid parameter 'channels'"):
        G2DOutlierDetector.from_paper(data="tables", generator__channels=5)


# What makes no sense for a cloud


@pytest.mark.parametrize("generator", [None, GaussianCloud(), GaussianMixture(2)])
def test_methods_that_need_a_trained_generator_say_so(generator):
    detector = G2DOutlierDetector(generator=generator, classifier=SHORT, random_state=0)
    detector.fit(TABLE[0])
    errors = (AttributeError, RuntimeError, ValueError, NotImplementedError)
    with pytest.raises(errors, match="WassersteinGAN"):
        detector.sample_normals(3)
    with pytest.raises(AttributeError, match="WassersteinGAN"):
        _ = detector.snapshots_
    assert not hasattr(detector, "snapshots_")
    with pytest.raises(errors, match="WassersteinGAN"):
        detector.sample_outliers(3, snapshots=[])
    scores = detector.score_samples(TABLE[1])
    with pytest.raises(ValueError, match=r"warm_start.*WassersteinGAN"):
        detector.set_params(warm_start=True).fit(TABLE[0])
    np.testing.assert_array_equal(detector.score_samples(TABLE[1]), scores)


def test_an_attribute_that_does_not_exist():
    """What `snapshots_` says must not be said of every name."""
    with pytest.raises(AttributeError, match="snapshot_") as caught:
        _ = G2DOutlierDetector(classifier=SHORT).fit(TABLE[0]).snapshot_
    assert "WassersteinGAN" not in str(caught.value)


def test_snapshots_are_those_of_the_generator():
    detector = clone(DETECTORS["WGAN"][0]).fit(TABLE[0])
    assert detector.snapshots_ is detector.generator_.snapshots_
    assert [s.step for s in detector.snapshots_] == [0, 3, 6]
    first = detector.sample_outliers(400, snapshots=detector.snapshots_[:1], random_state=0)
    last = detector.sample_outliers(400, snapshots=detector.snapshots_[-1:], random_state=0)
    assert np.abs(first - last).max() > 1e-3
    again = detector.sample_outliers(400, snapshots=detector.snapshots_[:1], random_state=0)
    np.testing.assert_array_equal(first, again)


def test_warm_start_after_a_cloud_starts_anew():
    X, X_test = TABLE
    detector = clone(DETECTORS["cloud"][0]).fit(X)
    detector.set_params(generator=WassersteinGAN(max_steps=3), warm_start=True).fit(X)
    assert detector.n_iter_ == 3
    anew = clone(detector).fit(X)
    np.testing.assert_array_equal(detector.score_samples(X_test), anew.score_samples(X_test))
    assert detector.fit(X).n_iter_ == 6


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("generator__n_members", 3, "n_members=2, but n_members is now 3"),
        ("generator__latent_dim", 5, "latent_dim=auto, but latent_dim is now 5"),
        ("generator__hidden_layer_sizes", (8,), r"hidden_layer_sizes is now \(8,\)"),
        ("generator__tail", 0.0, "tail=1.6, but tail is now 0.0"),
        ("generator__spread", 1.0, "spread=2.0, but spread is now 1.0"),
        ("generator__generator_network", make_generator, "generator_network is now <function"),
        ("scaler__bound", 2.0, "bound of the scaler=8.0, but .* now 2.0"),
    ],
)
def test_warm_start_refuses_what_it_cannot_change(name, value, message):
    X, _ = TABLE
    detector = clone(DETECTORS["WGAN"][0]).set_params(warm_start=True).fit(X)
    with pytest.raises(ValueError, match=message):
        detector.set_params(**{name: value}).fit(X)
    assert detector.n_iter_ == 6


# The cloud by hand


def test_a_cloud_has_the_spread_that_it_is_told():
    """Half of it round, the other half shaped like the data, both `spread` times as wide."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 2)) @ [[3.0, 0.0], [2.9, 0.3]] + [10.0, -4.0]
    cloud = GaussianCloud(spread=2.0, tail=0.0)
    parts = {"scaler": StandardScaler(), "generator": cloud, "classifier": SHORT}
    detector = G2DOutlierDetector(**parts, random_state=0).fit(X)
    points = StandardScaler().fit(X).transform(detector.sample_outliers(40_000, random_state=0))
    # Covariances of the halves: 4 I, and 4 times that of the standardised data.
    covariance = 4 * (np.eye(2) + np.corrcoef(X.T)) / 2
    np.testing.assert_allclose(np.cov(points.T), covariance, atol=0.15)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.05)
    tailed = clone(detector).set_params(generator__tail=1.0).fit(X)
    further = StandardScaler().fit(X).transform(tailed.sample_outliers(40_000, random_state=0))
    # The factor's mean square is the integral of exp(2 u^2) from 0 to 1, by Dawson's function.
    root = math.sqrt(2)
    factor = special.dawsn(root) * math.exp(2) / root
    np.testing.assert_allclose(np.cov(further.T), factor * covariance, rtol=0.08)


@pytest.mark.parametrize("n_features", [2, 6, 40])
def test_a_tenth_of_the_cloud_lies_as_close_as_normal_rows(n_features):
    """For each half, at a spread from .7 to 2; the nearer of these ends if it is not reached."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, n_features)) @ rng.normal(size=(n_features, n_features))
    detector = G2DOutlierDetector(classifier=SHORT, random_state=0).fit(X)
    points = detector.scaler_.transform(detector.sample_outliers(4000, random_state=0))
    limit = np.quantile(detector.profile_.transform(detector.profile_.reference_)[:, -1], 0.95)
    inside = detector.profile_.transform(points)[:, -1] < limit
    for fraction, spread in zip(
        inside.reshape(2, -1).mean(axis=1), detector.generator_.spread_, strict=True
    ):
        assert 0.05 < fraction < 0.17 or (fraction < 0.1 if spread < 0.72 else spread > 1.98)


def test_a_cloud_stays_within_the_scaler_s_bound():
    scaler = SquashingScaler(bound=3.0)
    detector = G2DOutlierDetector(
        scaler=scaler, generator=GaussianCloud(spread=50.0), classifier=SHORT, random_state=0
    ).fit(TABLE[0])
    points = detector.scaler_.transform(detector.sample_outliers(500))
    assert 2.9 < np.abs(points).max() <= 3.0


# Parts of scikit-learn


@pytest.mark.parametrize(
    "parts",
    [
        {"classifier": RandomForestClassifier(5)},
        {"classifier": make_pipeline(StandardScaler(), RandomForestClassifier(5))},
        {"generator": GaussianMixture(2), "classifier": LogisticRegression()},
    ],
    ids=["forest", "pipeline", "mixture"],
)
def test_parts_without_a_seed_get_one_from_the_detector(parts):
    X, X_test = TABLE
    numpy_state = np.random.get_state()[1].copy()
    detector = G2DOutlierDetector(**parts, n_neighbors=0, random_state=0).fit(X)
    scores = detector.score_samples(X_test)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    np.random.seed(7)
    again = clone(detector).fit(X)
    np.testing.assert_array_equal(again.score_samples(X_test), scores)
    np.testing.assert_array_equal(
        again.sample_outliers(9, random_state=0), detector.sample_outliers(9, random_state=0)
    )
    other = clone(detector).set_params(random_state=1).fit(X)
    assert np.abs(other.score_samples(X_test) - scores).max() > 1e-6


def test_a_seed_of_a_part_s_own_is_kept():
    """It gives other scores than the detector's seed would."""
    X, X_test = TABLE
    scores = [
        G2DOutlierDetector(classifier=RandomForestClassifier(5, random_state=seed), random_state=0)
        .fit(X)
        .score_samples(X_test)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


def test_a_scikit_learn_classifier_by_hand():
    """The mean log-odds of its clones, each kept from every fourth row."""
    X, X_test = TABLE
    parts = {"features": "passthrough", "scaler": StandardScaler(), "n_neighbors": 0}
    seen = []

    class Recorder(LogisticRegression):
        def fit(self, X, y):
            seen.append((X, y))
            return super().fit(X, y)

    detector = G2DOutlierDetector(**parts, classifier=Recorder(), random_state=0).fit(X)
    assert len(seen) == 4
    scaler = StandardScaler().fit(X)
    points, points_test = scaler.transform(X), scaler.transform(X_test)
    odds = []
    for fold, (rows, labels) in enumerate(seen):
        is_kept = np.arange(len(X)) % 4 != fold
        np.testing.assert_array_equal(rows[labels == 0], points[is_kept])
        assert np.sum(labels == 1) == 2 * len(X)
        model = LogisticRegression().fit(rows, labels)
        odds.append(-model.decision_function(points_test))
    np.testing.assert_allclose(detector.score_samples(X_test), np.mean(odds, axis=0), rtol=1e-6)


def test_a_density_model_can_generate(blobs):
    """An estimator with `fit` and `sample`, here a single wide Gaussian."""
    X, X_test, y_test = blobs
    detector = G2DOutlierDetector(generator=GaussianMixture(1), random_state=0).fit(X)
    assert outlier_roc_auc_score(y_test, detector.score_samples(X_test)) > 0.9
    samples = detector.scaler_.transform(detector.sample_outliers(4000, random_state=0))
    model = detector.generator_
    np.testing.assert_allclose(samples.mean(axis=0), model.means_[0], atol=0.1)
    np.testing.assert_allclose(np.cov(samples.T), model.covariances_[0], atol=0.15)


# Users' own networks


OWN_NETWORKS = {
    "table": (
        G2DOutlierDetector(
            generator=WassersteinGAN(
                max_steps=5,
                n_members=2,
                latent_dim=6,
                generator_network=make_generator,
                critic_network=make_network,
            ),
            classifier=NetworkClassifier(n_members=3, max_steps=30, network=make_network),
            n_neighbors=0,
            random_state=0,
        ),
        TABLE,
        (4,),
    ),
    "images": (
        G2DOutlierDetector(
            features="passthrough",
            generator=WassersteinGAN(
                max_steps=3,
                n_members=2,
                latent_dim=6,
                batch_size=8,
                generator_network=make_generator,
                critic_network=make_network,
            ),
            classifier=NetworkClassifier(n_members=3, max_steps=30, network=make_network),
            n_neighbors=0,
            random_state=0,
        ),
        IMAGES,
        (1, 8, 8),
    ),
}
ON_BOTH = pytest.mark.parametrize("kind", OWN_NETWORKS)


@ON_BOTH
def test_factories_are_told_shapes_and_give_every_member_a_network(kind):
    detector, (X, X_test), shape = OWN_NETWORKS[kind]
    arguments, built = {}, {}

    def recording(name, make):
        def factory(*given):
            arguments.setdefault(name, set()).add(given)
            built.setdefault(name, []).append(make(*given))
            return built[name][-1]

        return factory

    detector = clone(detector).set_params(
        generator__generator_network=recording("generator", make_generator),
        generator__critic_network=recording("critic", make_network),
        classifier__network=recording("classifier", make_network),
    )
    detector.fit(X)
    assert arguments == {
        "generator": {(6, shape)},
        "critic": {(shape, 1)},
        "classifier": {(shape, 2)},
    }
    for name, n_members in (("generator", 2), ("critic", 2), ("classifier", 3)):
        weights = [next(module.parameters()) for module in built[name][:n_members]]
        assert all((weights[0] != other).any() for other in weights[1:])
    # By hand: the mean log-odds of the trained modules.
    points = detector.scaler_.transform(X_test.reshape(len(X_test), -1))
    with torch.no_grad():
        samples = torch.from_numpy(points.astype(np.float32)).reshape(-1, *shape)
        logits = torch.stack([module(samples) for module in built["classifier"][:3]]).double()
    expected = (logits[..., 0] - logits[..., 1]).mean(0)
    np.testing.assert_allclose(detector.score_samples(X_test), expected, atol=1e-5)


@ON_BOTH
def test_own_networks_are_deterministic_and_leave_the_global_generator_alone(kind):
    detector, (X, X_test), _ = OWN_NETWORKS[kind]
    results = []
    for seed, global_seed in ((0, 3), (0, 4), (1, 3)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        fitted = clone(detector).set_params(random_state=seed).fit(X)
        samples = fitted.sample_outliers(5)
        results.append(np.append(fitted.score_samples(X_test), samples))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-3


class Restless(nn.Module):
    """Has dropout, batch norm, and a constant that is neither parameter nor buffer."""

    def __init__(self, n_in, shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(n_in, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)
        )
        self.last = nn.Linear(16, math.prod(shape))
        self.shape = shape
        self.scale = torch.tensor(0.5)

    def forward(self, x):
        return (self.scale * self.last(self.layers(x))).reshape(-1, *self.shape)


def make_restless_generator(latent_dim, shape):
    return Restless(latent_dim, shape)


def make_restless_classifier(shape, n_outputs):
    return Restless(math.prod(shape), (n_outputs,))


@ON_BOTH
def test_own_networks_with_dropout_batch_norm_and_constants(kind):
    detector, (X, X_test), _ = OWN_NETWORKS[kind]
    detector = clone(detector).set_params(
        generator__generator_network=make_restless_generator,
        classifier__network=make_restless_classifier,
    )
    results = []
    for global_seed in (3, 4):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        fitted = clone(detector).fit(X)
        scores = fitted.score_samples(X_test)
        np.testing.assert_array_equal(fitted.score_samples(X_test), scores)  # no dropout here
        alone = [fitted.score_samples(X_test[i : i + 1])[0] for i in range(5)]
        np.testing.assert_array_equal(alone, scores[:5])
        results.append(np.append(scores, fitted.sample_outliers(5, random_state=0)))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(results[0], results[1])


@ON_BOTH
def test_copies_of_own_networks_score_alike(kind):
    detector, (X, X_test), _ = OWN_NETWORKS[kind]
    fitted = clone(detector).fit(X)
    expected = fitted.score_samples(X_test)
    for copied in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(copied.score_samples(X_test), expected)
        np.testing.assert_array_equal(
            copied.sample_outliers(5, random_state=0), fitted.sample_outliers(5, random_state=0)
        )


class Factory:
    """An object that makes networks, and is cloned with the part that it belongs to."""

    def __init__(self, width):
        self.width = width

    def __repr__(self):
        return f"Factory({self.width})"

    def __call__(self, shape, n_outputs):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), self.width), nn.Linear(self.width, n_outputs)
        )


def test_warm_start_of_own_networks():
    detector, (X, X_test), _ = OWN_NETWORKS["table"]
    detector = clone(detector).set_params(warm_start=True)
    detector.set_params(generator__critic_network=Factory(4)).fit(X)
    again = pickle.loads(pickle.dumps(detector))
    first = detector.snapshots_[-1].weights
    for each in (detector, again):
        each.fit(X)
        assert each.n_iter_ == 10
        moved = [
            np.abs(value - first[name]).max() for name, value in each.snapshots_[-1].weights.items()
        ]
        assert 0 < max(moved) < 0.05  # five steps of a thousandth
    np.testing.assert_array_equal(detector.score_samples(X_test), again.score_samples(X_test))
    for other in (Factory(5), make_network, lambda shape, n: nn.Linear(4, 1)):
        with pytest.raises(
            ValueError, match=r"critic_network=.*Factory\(4\).* but critic_network is"
        ):
            detector.set_params(generator__critic_network=other).fit(X)


def test_own_networks_in_threads():
    """PyTorch's global generator, from which dropout draws, is one for all threads."""
    _, (X, X_test), _ = OWN_NETWORKS["table"]
    classifier = NetworkClassifier(n_members=2, max_steps=40, network=make_restless_classifier)
    detectors = [
        G2DOutlierDetector(classifier=classifier, n_neighbors=0, random_state=seed)
        for seed in range(4)
    ]

    def fit_and_score(detector):
        return clone(detector).fit(X).score_samples(X_test)

    alone = [fit_and_score(detector) for detector in detectors]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fit_and_score, detectors))
    np.testing.assert_array_equal(together, alone)


def test_own_networks_detect(blobs):
    X, X_test, y_test = blobs
    detector = G2DOutlierDetector(
        classifier=NetworkClassifier(network=make_network), random_state=0
    ).fit(X)
    assert outlier_roc_auc_score(y_test, detector.score_samples(X_test)) > 0.95
    classifier_loss = detector.history_["classifier_loss"]
    assert classifier_loss[-20:].mean() < 0.7 * classifier_loss[:20].mean()


@pytest.mark.parametrize(
    ("name", "factory", "error", "message"),
    [
        ("generator__generator_network", lambda n, s: nn.Linear(n, 3), ValueError, r"\(64, 3\).*4"),
        ("generator__critic_network", lambda s, n: nn.Linear(4, 2), ValueError, r"\(64, 2\).*1"),
        ("classifier__network", lambda s, n: nn.Linear(4, 1), ValueError, r"\(128, 1\).*2"),
        ("generator__generator_network", lambda n, s: None, TypeError, r"torch.nn.Module.* None"),
        ("generator__critic_network", lambda s, n: nn.Linear, TypeError, "torch.nn.Module"),
        ("classifier__network", lambda s, n: abs, TypeError, "torch.nn.Module"),
        ("classifier__network", ConvGenerator(), (TypeError, ValueError), "'network'.*ConvNetwork"),
        (
            "generator__critic_network",
            ConvGenerator(),
            (TypeError, ValueError),
            "'critic_network'.*ConvNetwork",
        ),
        (
            "generator__generator_network",
            ConvNetwork(),
            (TypeError, ValueError),
            "'generator_network'.*ConvGenerator",
        ),
    ],
)
def test_factories_that_return_something_else(name, factory, error, message):
    detector, (X, _), _ = OWN_NETWORKS["table"]
    with pytest.raises(error, match=message):
        clone(detector).set_params(**{name: factory}).fit(X)


def test_an_own_optimizer_and_schedule():
    """A callable does what the name does."""
    X, X_test = TABLE
    detector = DETECTORS["WGAN"][0]
    rates = []

    def adamw(parameters, learning_rate):
        rates.append(learning_rate)
        return torch.optim.AdamW(parameters, learning_rate, fused=True)

    def cosine(finished):
        assert 0 <= finished < 1
        return (1 + math.cos(math.pi * finished)) / 2

    named = clone(detector).set_params(classifier__schedule="cosine")
    own = clone(detector).set_params(classifier__schedule=cosine, classifier__optimizer=adamw)
    expected = named.fit(X).score_samples(X_test)
    np.testing.assert_array_equal(own.fit(X).score_samples(X_test), expected)
    assert rates == [2e-3]


def test_a_schedule_of_zero_trains_nothing():
    X, X_test = TABLE
    detector = DETECTORS["cloud"][0]
    still, untrained = (
        clone(detector).set_params(**params).fit(X).score_samples(X_test)
        for params in (
            {"classifier__schedule": lambda finished: 0.0},
            {"classifier__max_steps": 0},
        )
    )
    np.testing.assert_array_equal(still, untrained)


# Callbacks that look at a detector in training


class Watcher:
    """Applies functions to the detector as it is at the steps of the stages of their names."""

    def __init__(self, every, **functions):
        self.every = every
        self.functions = functions
        self.seen = {name: [] for name in functions}

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        if context.task_name != "step" or metadata["step"] % self.every:
            return
        stage = context.parent.task_name
        if stage in self.functions:
            self.seen[stage].append(self.functions[stage](fitted_estimator))


def test_validation_curves_of_the_classifier(blobs):
    X, X_test, y_test = blobs

    def auc(fitted):
        return outlier_roc_auc_score(y_test, fitted.score_samples(X_test))

    watcher = Watcher(100, classifier=auc)
    detector = G2DOutlierDetector(random_state=0)
    watched = clone(detector).set_callbacks(watcher).fit(X)
    untrained = clone(detector).set_params(classifier__max_steps=0).fit(X)
    curve = [auc(untrained), *watcher.seen["classifier"]]
    assert len(curve) == 4
    assert curve[-1] == auc(watched)
    assert curve[-1] > max(0.9, curve[0])
    stopped = clone(detector).set_params(classifier__max_steps=200).fit(X)
    assert curve[2] == auc(stopped)
    np.testing.assert_array_equal(
        watched.score_samples(X_test), clone(detector).fit(X).score_samples(X_test)
    )


@pytest.mark.parametrize("kind", ["WGAN", "convolutions", "own"])
def test_samples_of_the_generator_in_training(kind):
    detector, (X, X_test), *_ = {**DETECTORS, "own": OWN_NETWORKS["table"]}[kind]

    def draw(fitted):
        return fitted.sample_outliers(6, random_state=0)

    watcher = Watcher(2, generator=draw, classifier=lambda fitted: fitted.score_samples(X_test))
    watched = clone(detector).set_callbacks(watcher).fit(X)
    plain = clone(detector).fit(X)
    np.testing.assert_array_equal(watched.score_samples(X_test), plain.score_samples(X_test))
    np.testing.assert_array_equal(draw(watched), draw(plain))
    for name, losses in plain.history_.items():
        np.testing.assert_array_equal(watched.history_[name], losses)
    samples = watcher.seen["generator"]
    assert len(samples) == detector.generator.max_steps // 2
    assert samples[0].shape == (6, *X.shape[1:])
    assert np.abs(samples[0] - samples[-1]).max() > 1e-5
    # The last step's are those of the snapshot that is kept then.
    last = watched.sample_outliers(6, snapshots=watched.snapshots_[-1:], random_state=0)
    if detector.generator.max_steps % 2 == 0:
        np.testing.assert_array_equal(samples[-1], last)
    scores = watcher.seen["classifier"]
    assert np.isfinite(scores).all()
    if detector.classifier.max_steps % 2 == 0:
        np.testing.assert_array_equal(scores[-1], plain.score_samples(X_test))


def test_a_generator_in_training_cannot_score():
    """There is no classifier yet; that of a fit before would be worse than an error."""
    X, X_test = TABLE
    errors = []

    def score(fitted):
        try:
            fitted.score_samples(X_test)
        except Exception as error:
            errors.append(error)

    detector = clone(DETECTORS["WGAN"][0])
    detector.set_callbacks(Watcher(1, generator=score)).fit(X)
    assert len(errors) == 6
    detector.fit(X)
    assert len(errors) == 12


class Turned(ClassifierMixin, BaseEstimator):
    """A classifier whose columns of probabilities stand in the other order."""

    def fit(self, X, y):
        self.regression_ = LogisticRegression().fit(X, y)
        self.classes_ = self.regression_.classes_[::-1]
        return self

    def predict_proba(self, X):
        return self.regression_.predict_proba(X)[:, ::-1]


def test_the_order_of_a_classifiers_classes_does_not_matter():
    scores = [
        G2DOutlierDetector(classifier=classifier, random_state=0)
        .fit(TABLE[0])
        .score_samples(TABLE[0])
        for classifier in (LogisticRegression(), Turned())
    ]
    np.testing.assert_array_equal(*scores)


class TooFew(BaseEstimator):
    def fit(self, X, y=None):
        self.rows_ = X[:2]
        return self

    def sample(self, n_samples):
        return self.rows_


def test_a_generator_that_returns_too_few_rows_is_an_error():
    detector = G2DOutlierDetector(generator=TooFew(), random_state=0)
    with pytest.raises(ValueError, match=r"TooFew.sample\(\d+\) returned shape \(2, \d\)"):
        detector.fit(TABLE[0])


class Dropping(BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:5]


def test_a_scaler_that_drops_rows_is_an_error():
    with pytest.raises(ValueError, match=r"scaler Dropping returned shape \(5, \d\) for 80 rows"):
        G2DOutlierDetector(scaler=Dropping(), random_state=0).fit(TABLE[0])
