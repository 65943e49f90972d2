import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector, display
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.display import (
    AnomalyMapDisplay,
    ContributionDisplay,
    LossCurveDisplay,
    OutlierDetCurveDisplay,
    OutlierRocCurveDisplay,
    ScoreDistributionDisplay,
    SnapshotSamplesDisplay,
)
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import equal_error_rate, outlier_roc_auc_score
from sklearn_g2d.video import ClipDetector

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

SCORE_DISPLAYS = [ScoreDistributionDisplay, OutlierRocCurveDisplay, OutlierDetCurveDisplay]
CURVES = [OutlierRocCurveDisplay, OutlierDetCurveDisplay]

# From the most to the least anomalous: outlier, inlier, outlier, inlier.
Y, SCORE = [1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1]


@pytest.fixture(autouse=True)
def close_figures(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a display must not show itself"))
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted():
    """A detector, and labelled rows that it separates imperfectly."""
    rng = np.random.default_rng(0)
    y = np.repeat([1, -1], [60, 20])
    X = rng.normal(size=(80, 2)) * np.where(y == 1, 1, 2.5)[:, None]
    forest = IsolationForest(n_estimators=10, random_state=0)
    return make_pipeline(StandardScaler(), forest).fit(X[y == 1]), X, y


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# All displays of scores


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
def test_from_estimator_plots_the_decision_function(cls, fitted):
    detector, X, y = fitted
    given = cls.from_estimator(detector, X, y)
    again = cls.from_predictions(y, detector.decision_function(X), name="Pipeline")
    assert isinstance(given, cls)
    assert given.ax_ is not again.ax_
    assert given.figure_ is given.ax_.figure
    assert legend_of(given.ax_) == legend_of(again.ax_)
    np.testing.assert_array_equal(given.line_.get_xydata(), again.line_.get_xydata())


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
def test_draws_on_the_given_axes_as_often_as_asked(cls, fitted):
    _, ax = plt.subplots()
    shown = cls.from_estimator(*fitted, ax=ax)
    assert shown.ax_ is ax
    n_artists = len(ax.lines) + len(ax.patches)
    assert shown.plot(ax=ax) is shown
    assert len(ax.lines) + len(ax.patches) == 2 * n_artists
    assert plt.get_fignums() == [ax.figure.number]


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([0, 0, 1, -1], SCORE, r"y_true must hold \+1 for inliers .* contains -1, 0, 1"),
        (["a", "a", "b", "b"], SCORE, "y_true contains the texts 'a', 'b'.* Pass pos_label"),
        (Y, SCORE[:3], "inconsistent numbers of samples"),
        (Y, [0.1, np.nan, 0.2, 0.3], "y_score contains NaN"),
    ],
)
def test_unusable_input_is_an_error(cls, y, score, message):
    with pytest.raises(ValueError, match=message):
        cls.from_predictions(y, score)
    assert not plt.get_fignums()


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
@pytest.mark.parametrize(
    ("labels", "pos_label"),
    [
        (lambda outlier: outlier.astype(int), None),
        (lambda outlier: outlier, None),
        (lambda outlier: np.where(outlier, "bad", "good").astype(object), "bad"),
    ],
    ids=["0 and 1", "booleans", "texts"],
)
def test_labels_may_be_of_every_kind(cls, labels, pos_label, fitted):
    detector, X, y = fitted
    expected = cls.from_estimator(detector, X, y)
    given = cls.from_estimator(detector, X, labels(y == -1), pos_label=pos_label)
    assert legend_of(given.ax_) == legend_of(expected.ax_)
    for patch, other in zip(given.ax_.patches, expected.ax_.patches, strict=True):
        assert patch.get_height() == other.get_height()
    np.testing.assert_array_equal(given.line_.get_xydata(), expected.line_.get_xydata())


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
def test_weights_count_rows_as_copies_of_them_do(cls, fitted):
    detector, X, y = fitted
    weight = np.random.default_rng(0).integers(1, 4, size=80)
    given = cls.from_estimator(detector, X, y, sample_weight=weight)
    copies = np.repeat(np.arange(80), weight)
    expected = cls.from_estimator(detector, X[copies], y[copies])
    assert legend_of(given.ax_) == legend_of(expected.ax_)
    for patch, other in zip(given.ax_.patches, expected.ax_.patches, strict=True):
        assert patch.get_height() == pytest.approx(other.get_height())
    np.testing.assert_allclose(
        given.line_.get_xydata(), expected.line_.get_xydata(), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(ValueError, match="Negative values"):
        cls.from_estimator(detector, X, y, sample_weight=-weight)


@pytest.mark.parametrize("cls", SCORE_DISPLAYS)
def test_a_detector_of_pyod_is_an_error_that_names_the_adapter(cls, fitted):
    _, X, y = fitted
    of_pyod = type("KNN", (IsolationForest,), {"__module__": "pyod.models.knn"})
    detector = make_pipeline(StandardScaler(), of_pyod(n_estimators=2)).fit(X)
    with pytest.raises(TypeError, match=r"KNN is a detector of PyOD.*FromPyOD"):
        cls.from_estimator(detector, X, y)
    assert not plt.get_fignums()


# Histograms


def test_score_distribution_by_hand():
    y = [1, 1, 1, 1, -1, -1]
    score = [0.5, 1.5, 1.6, 2.0, -1.5, 0.2]
    shown = ScoreDistributionDisplay.from_predictions(y, score, bins=[-2, -1, 0, 1, 2], name="D")
    inliers, outliers = ([bar.get_height() for bar in bars] for bars in shown.bars_)
    np.testing.assert_allclose(inliers, [0, 0, 1 / 4, 3 / 4])
    np.testing.assert_allclose(outliers, [1 / 2, 0, 1 / 2, 0])
    assert set(shown.line_.get_xdata()) == {0}
    assert shown.ax_.get_xlabel() == "decision_function (negative = outlier)"
    assert shown.ax_.get_ylabel() == "density"
    assert shown.ax_.get_title() == "D"
    assert legend_of(shown.ax_) == ["inliers (n = 4)", "outliers (n = 2)", "threshold"]


def test_score_distribution_counts_rows_in_shared_bins(fitted):
    detector, X, y = fitted
    shown = ScoreDistributionDisplay.from_estimator(detector, X, y, bins=7, density=False)
    edges = np.histogram_bin_edges(detector.decision_function(X), bins=7)
    for bars in shown.bars_:
        np.testing.assert_allclose([bar.get_x() for bar in bars], edges[:-1])
    assert [sum(bar.get_height() for bar in bars) for bars in shown.bars_] == [60, 20]
    assert shown.ax_.get_ylabel() == "rows"


def test_score_distribution_without_labels_is_one_histogram(fitted):
    detector, X, _ = fitted
    shown = ScoreDistributionDisplay.from_estimator(detector, X, name="forest", color="black")
    (bars,) = shown.bars_
    assert len(bars) == 30
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)
    assert bars[0].get_facecolor()[:3] == (0, 0, 0)
    assert legend_of(shown.ax_) == ["all rows (n = 80)", "threshold"]
    assert shown.ax_.get_title() == "forest"


def test_score_distribution_leaves_out_a_kind_that_does_not_occur():
    shown = ScoreDistributionDisplay.from_predictions([-1, -1], [0.1, -0.4])
    assert legend_of(shown.ax_) == ["outliers (n = 2)", "threshold"]


# Curves


def test_roc_curve_by_hand():
    shown = OutlierRocCurveDisplay.from_predictions(Y, SCORE, name="D")
    np.testing.assert_allclose(
        shown.line_.get_xydata(), [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    )
    assert legend_of(shown.ax_) == ["D (AUC = 0.75)"]
    assert shown.ax_.get_xlabel() == "false-alarm rate (inliers flagged)"
    assert shown.ax_.get_ylabel() == "detection rate (outliers flagged)"


def test_roc_curve_is_that_of_the_outliers(fitted):
    detector, X, y = fitted
    score = detector.decision_function(X)
    shown = OutlierRocCurveDisplay.from_estimator(detector, X, y)
    fpr, tpr, _ = roc_curve(y, -score, pos_label=-1)
    np.testing.assert_allclose(shown.line_.get_xydata(), np.column_stack([fpr, tpr]))
    assert shown.roc_auc == outlier_roc_auc_score(y, score)
    assert np.trapezoid(shown.tpr, shown.fpr) == pytest.approx(shown.roc_auc)


def test_det_curve_by_hand():
    # Ranked from the most anomalous: out, in, out, in, in, out, in.
    y = [-1, 1, -1, 1, 1, -1, 1]
    shown = OutlierDetCurveDisplay.from_predictions(y, np.arange(7), name="D")
    pairs = {(0.25, 1 / 3), (0.5, 1 / 3)}
    drawn = norm.cdf(shown.line_.get_xydata())
    for pair in pairs:
        assert np.isclose(drawn, pair).all(axis=1).any()
    assert legend_of(shown.ax_) == ["D (EER = 0.33)"]
    assert shown.ax_.get_xlabel() == "false-alarm rate (inliers flagged)"
    assert shown.ax_.get_ylabel() == "miss rate (outliers not flagged)"
    assert "1%" in [tick.get_text() for tick in shown.ax_.get_xticklabels()]


def test_det_curve_is_that_of_the_outliers(fitted):
    detector, X, y = fitted
    score = detector.decision_function(X)
    shown = OutlierDetCurveDisplay.from_estimator(detector, X, y)
    assert shown.eer == equal_error_rate(y, score)
    for fpr, fnr in zip(shown.fpr, shown.fnr, strict=True):
        rates = [(np.mean(score[y == 1] <= t), np.mean(score[y == -1] > t)) for t in score]
        assert np.isclose(rates, (fpr, fnr)).all(axis=1).any()
    x, _ = norm.cdf(shown.line_.get_xydata()).T
    np.testing.assert_allclose(x, shown.fpr, atol=1e-9)


@pytest.mark.parametrize("cls", CURVES)
def test_curves_of_a_perfect_detector_are_finite(cls):
    shown = cls.from_predictions(Y, Y)
    assert np.isfinite(shown.line_.get_xydata()).all()
    assert legend_of(shown.ax_) in (["AUC = 1.00"], ["EER = 0.00"])


@pytest.mark.parametrize(
    "shown",
    [
        OutlierRocCurveDisplay(fpr=np.array([0.0, 1.0]), tpr=np.array([0.0, 1.0])),
        OutlierDetCurveDisplay(fpr=np.array([0.1, 0.9]), fnr=np.array([0.9, 0.1])),
    ],
    ids=["ROC", "DET"],
)
def test_curves_have_a_legend_if_there_is_anything_to_say(shown):
    assert shown.plot().ax_.get_legend() is None
    assert legend_of(shown.plot(name="D").ax_) == ["D"]


@pytest.mark.parametrize("cls", CURVES)
def test_curves_share_axes_and_take_the_style_of_lines(cls):
    first = cls.from_predictions(Y, SCORE, name="first", color="red", linestyle=":")
    second = cls.from_predictions(Y, Y, name="second", ax=first.ax_)
    assert (first.line_.get_color(), first.line_.get_linestyle()) == ("red", ":")
    assert list(first.ax_.lines) == [first.line_, second.line_]
    assert [text.split()[0] for text in legend_of(first.ax_)] == ["first", "second"]


@pytest.mark.parametrize("cls", CURVES)
def test_curves_need_both_kinds(cls, fitted):
    with pytest.raises(ValueError, match="both inliers"):
        cls.from_predictions([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="1d array"):
        cls.from_estimator(*fitted[:2])


# Losses


class Trained(BaseEstimator):
    """What is left of a detector after training, as far as a plot is concerned."""

    def fit(self, X=None, y=None):
        self.history_ = {
            "critic_loss": np.array([-4.0, -3, -2, -1], dtype=np.float32),
            "generator_loss": np.array([8.0, 6, 4, 3], dtype=np.float32),
            "classifier_loss": np.array([0.7, 0.1], dtype=np.float32),
        }
        self.snapshots_ = [
            SimpleNamespace(step=0, loss=np.nan, role="far"),
            SimpleNamespace(step=1, loss=8.0, role="far"),
            SimpleNamespace(step=4, loss=3.0, role="normal"),
        ]
        return self


def test_loss_curves_by_hand():
    shown = LossCurveDisplay.from_estimator(Trained().fit())
    assert set(shown.lines_) == {"generator_loss", "critic_loss"}
    np.testing.assert_array_equal(
        shown.lines_["generator_loss"].get_xydata(), [[1, 8], [2, 6], [3, 4], [4, 3]]
    )
    np.testing.assert_array_equal(
        shown.lines_["critic_loss"].get_xydata(), [[1, -4], [2, -3], [3, -2], [4, -1]]
    )
    assert shown.ax_.get_title() == "Trained"
    assert shown.ax_.get_xlabel() == "generator step"


def test_loss_curves_mark_snapshots_by_role():
    shown = LossCurveDisplay.from_estimator(Trained().fit())
    assert set(shown.markers_) == {"far", "normal"}
    # The generator before the first step has no loss, and stands at the first one.
    np.testing.assert_array_equal(shown.markers_["far"].get_offsets(), [[0, 8], [1, 8]])
    np.testing.assert_array_equal(shown.markers_["normal"].get_offsets(), [[4, 3]])
    colors = [shown.markers_[role].get_facecolor()[0].tolist() for role in ("far", "normal")]
    assert colors[0] != colors[1]
    assert [text.get_text() for text in shown.texts_] == ["0", "1", "4"]
    assert [text.xy for text in shown.texts_] == [(0, 8), (1, 8), (4, 3)]
    assert legend_of(shown.ax_) == [
        "generator loss",
        "critic loss",
        "snapshot: far",
        "snapshot: normal",
    ]


def test_loss_curves_take_axes_style_and_name():
    _, ax = plt.subplots()
    shown = LossCurveDisplay.from_estimator(Trained().fit(), name="D", ax=ax, linewidth=3)
    assert shown.ax_ is ax
    assert shown.figure_ is ax.figure
    assert ax.get_title() == "D"
    assert [line.get_linewidth() for line in ax.lines] == [3, 3]


def test_loss_curves_do_without_snapshots():
    shown = LossCurveDisplay(history={"generator_loss": [2.0, 1.0]}).plot()
    assert list(shown.lines_) == ["generator_loss"]
    assert shown.markers_ == {}
    assert shown.texts_ == []


def test_loss_curves_of_other_networks():
    history = {"reconstruction_loss": [2.0, 1.0], "detector_loss": [0.7, 0.6]}
    shown = LossCurveDisplay(history=history | {"networks_retries": [1]}).plot()
    assert list(shown.lines_) == list(history)
    assert shown.ax_.get_xlabel() == "step"


def test_loss_curves_need_a_fitted_detector_and_losses():
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(Trained())
    with pytest.raises(ValueError, match=r"holds no loss, only \[\]. Fit with .* max_steps"):
        LossCurveDisplay(history={}).plot()
    assert not plt.get_fignums()


def test_loss_curves_without_a_gan_are_those_of_the_classifier():
    classifier = NetworkClassifier(max_steps=7, n_members=1)
    detector = G2DOutlierDetector(classifier=classifier, random_state=0).fit(np.eye(8, 2))
    shown = LossCurveDisplay.from_estimator(detector)
    assert legend_of(shown.ax_) == ["classifier loss"]
    x, y = shown.lines_["classifier_loss"].get_xydata().T
    np.testing.assert_array_equal(x, np.arange(1, 8))
    np.testing.assert_array_equal(y, detector.history_["classifier_loss"])
    assert shown.markers_ == {}


def test_loss_curves_of_many_losses_are_all_drawn():
    history = {f"{i}_loss": [1.0, 2.0] for i in range(7)}
    assert list(LossCurveDisplay(history=history).plot().lines_) == list(history)


# matplotlib is optional


@pytest.mark.parametrize(
    "draw",
    [
        *(lambda d=d: d.from_predictions(Y, SCORE) for d in SCORE_DISPLAYS),
        lambda: ScoreDistributionDisplay.from_estimator(None, None),
        lambda: LossCurveDisplay.from_estimator(Trained().fit()),
        lambda: AnomalyMapDisplay.from_estimator(None, None),
        lambda: AnomalyMapDisplay.from_predictions(np.eye(2), np.eye(2)),
        lambda: ContributionDisplay.from_estimator(None, None),
        lambda: ContributionDisplay.from_predictions([1.0]),
    ],
)
def test_the_error_without_matplotlib_names_the_extra(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install sklearn_g2d\[plot\]"):
        draw()


def test_the_module_can_be_imported_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = importlib.util.spec_from_file_location("display_copy", display.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert set(display.__all__) == {name for name in vars(copy) if name.endswith("Display")}


@pytest.fixture(scope="module")
def image_detector():
    images = load_digits().images[:60, None]
    detector = G2DOutlierDetector.from_paper(
        data="images",
        generator__max_steps=6,
        generator__generator_network=ConvGenerator(channels=4),
        generator__critic_network=ConvNetwork(channels=4),
        classifier__network=ConvNetwork(channels=4),
        classifier__max_steps=3,
        random_state=0,
    )
    return detector.fit(images)


def test_snapshot_samples_are_a_row_of_images_for_each_snapshot(image_detector):
    display = SnapshotSamplesDisplay.from_estimator(image_detector, n_samples=3, cmap="bone")
    assert display.image_.get_cmap().name == "bone"
    n_snapshots = len(image_detector.snapshots_)
    assert display.samples.shape == (n_snapshots, 3, 1, 8, 8)
    assert display.image_.get_array().shape == (n_snapshots * 9, 3 * 9)
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == [f"step {s.step}: {s.role}" for s in image_detector.snapshots_]
    first = image_detector.sample_outliers(3, snapshots=image_detector.snapshots_[:1])
    np.testing.assert_array_equal(display.samples[0], first)


def test_snapshot_samples_in_colour_and_in_many_channels(image_detector):
    snapshots = image_detector.snapshots_[:2]
    rng = np.random.default_rng(0)
    for n_channels, shape in ((3, (2 * 6, 4 * 8, 3)), (5, (2 * 6, 4 * 8))):
        samples = rng.uniform(-3, 9, size=(2, 4, n_channels, 5, 7))
        display = SnapshotSamplesDisplay(samples=samples, snapshots=snapshots).plot()
        drawn = display.image_.get_array()
        assert drawn.shape == shape
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_samples_of_early_snapshots_do_not_dim_the_last_ones(image_detector):
    samples = np.zeros((2, 3, 1, 4, 4))
    samples[0], samples[1, :, :, :2] = -1000.0, 5.0
    display = SnapshotSamplesDisplay(samples=samples, snapshots=image_detector.snapshots_[:2])
    drawn = display.plot().image_.get_array()
    assert set(np.unique(drawn[6:9])) == {0.0, 1.0}  # within the images of the last snapshot
    assert (drawn[1:5, 1:5] == 0).all()


def test_roles_of_snapshots_are_not_cut_off(image_detector):
    display = SnapshotSamplesDisplay.from_estimator(image_detector, n_samples=20)
    display.figure_.canvas.draw()
    for label in display.ax_.get_yticklabels():
        assert label.get_window_extent().x0 >= 0


def test_snapshot_samples_of_a_table_are_refused():
    generator = WassersteinGAN(max_steps=1, n_members=1)
    detector = G2DOutlierDetector(generator=generator).fit(np.eye(5))
    with pytest.raises(ValueError, match="fitted on a table"):
        SnapshotSamplesDisplay.from_estimator(detector)


@pytest.mark.parametrize(
    "detector", [G2DOutlierDetector(), AVIDDetector(training=CellInpainting(max_steps=1))]
)
def test_snapshot_samples_need_a_gan(detector):
    with pytest.raises(NotFittedError):
        SnapshotSamplesDisplay.from_estimator(detector)
    with pytest.raises(ValueError, match=r"has no snapshots.*generator=WassersteinGAN"):
        SnapshotSamplesDisplay.from_estimator(detector.fit(np.eye(8)))


# Anomaly maps


class Mapper(BaseEstimator):
    """A detector as far as a plot is concerned: what differs from 100 is anomalous."""

    def __init__(self, image_shape=None):
        self.image_shape = image_shape

    def fit(self, X=None, y=None):
        self.map_range_ = (0.0, 4.0)
        self.image_shape_ = self.image_shape
        return self

    def anomaly_map(self, X):
        X = np.asarray(X, dtype=float)
        if self.image_shape_ is not None:
            X = X.reshape(-1, *self.image_shape_)
        distance = np.abs(X - 100) / 10
        return distance.mean(axis=1) if X.ndim == 4 else distance

    def predict_mask(self, X):
        return self.anomaly_map(X) > 3

    def inpaint(self, X):
        return np.full_like(np.asarray(X), 100)


@pytest.fixture
def gray():
    """Two images of bytes: the first has an anomalous pixel, and a corner somewhat bright."""
    images = np.full((2, 1, 3, 4), 100, dtype=np.uint8)
    images[0, 0, 1, 2] = 200
    images[0, 0, 0, 0] = 120
    images[1, 0, 2, 3] = 0
    return images


def titles_of(shown):
    return [ax.get_title() for ax in shown.axes_[0]]


def data_of(pictures):
    return np.stack([np.asarray(picture.get_array()) for picture in pictures])


def sides_of(outline):
    return {tuple(map(tuple, side)) for side in np.array(outline.get_segments()).tolist()}


def square(x, y):
    """Sides of the pixel at column x and row y."""
    left, right, top, bottom = x - 0.5, x + 0.5, y - 0.5, y + 0.5
    return {
        ((left, top), (left, bottom)),
        ((right, top), (right, bottom)),
        ((left, top), (right, top)),
        ((left, bottom), (right, bottom)),
    }


def test_maps_of_images_by_hand(gray):
    detector = Mapper().fit()
    shown = AnomalyMapDisplay.from_estimator(detector, gray)
    assert shown.axes_.shape == (2, 4)
    assert titles_of(shown) == ["image", "inpainted", "anomaly map", "predicted mask"]
    assert shown.axes_[0, 0].get_title(loc="left").strip() == "Mapper"
    assert shown.axes_[1, 0].get_title() == ""
    assert {kind: len(drawn) for kind, drawn in shown.pictures_.items()} == {
        "image": 2,
        "inpainted": 2,
        "map": 2,
    }
    # Bytes from 0 to 200 occur, in another image each.
    np.testing.assert_allclose(data_of(shown.pictures_["image"]), gray[:, 0] / 200, rtol=1e-6)
    np.testing.assert_allclose(data_of(shown.pictures_["inpainted"]), 0.5)
    np.testing.assert_array_equal(data_of(shown.pictures_["map"]), detector.anomaly_map(gray))
    for column, kind in enumerate(shown.pictures_):
        assert [p.axes for p in shown.pictures_[kind]] == list(shown.axes_[:, column])
    assert {p.get_clim() for kind in ("image", "inpainted") for p in shown.pictures_[kind]} == {
        (0, 1)
    }
    first, second = shown.outlines_["predicted"]
    assert sides_of(first) == square(2, 1)
    assert sides_of(second) == square(3, 2)
    assert [first.axes, second.axes] == list(shown.axes_[:, 3])
    assert shown.axes_[-1, -1].get_legend() is None
    assert shown.figure_ is shown.ax_.figure


class WithoutInpainter(Mapper):
    inpaint = property()  # which is no attribute


@pytest.mark.parametrize("as_rows", [False, True])
def test_maps_of_a_detector_that_does_not_inpaint(gray, as_rows):
    detector, X = WithoutInpainter(), gray
    if as_rows:
        detector, X = WithoutInpainter(image_shape=(1, 3, 4)), gray.reshape(2, -1)
    shown = AnomalyMapDisplay.from_estimator(detector.fit(), X)
    assert titles_of(shown) == ["image", "anomaly map", "predicted mask"]
    np.testing.assert_allclose(data_of(shown.pictures_["image"]), gray[:, 0] / 200, rtol=1e-6)


def test_maps_and_overlays_of_patches(tmp_path):
    images = np.random.default_rng(0).integers(0, 99, size=(30, 1, 8, 8), dtype=np.uint8)
    features = PretrainedFeatures(torch.nn.Conv2d(3, 4, 2, stride=2), image_size=8)
    detector = PatchDetector(features=features, random_state=0).fit(images)
    shown = AnomalyMapDisplay.from_estimator(detector, images[:2])
    np.testing.assert_array_equal(data_of(shown.pictures_["map"]), detector.anomaly_map(images[:2]))
    assert {p.get_clim() for p in shown.pictures_["map"]} == {detector.map_range_}
    paths = AnomalyMapDisplay.save_overlays(detector, images, tmp_path, range(30))
    assert read(paths[0]).shape == (8, 8, 3)


def test_maps_of_frames_have_no_masks():
    clip = np.random.default_rng(0).integers(0, 99, size=(20, 1, 8, 8), dtype=np.uint8)
    rows = FunctionTransformer(lambda patches: patches.reshape(len(patches), -1))
    forest = make_pipeline(rows, IsolationForest(n_estimators=2, random_state=0))
    detector = ClipDetector(forest, patch_size=4, overlap=0).fit(clip)
    shown = AnomalyMapDisplay.from_estimator(detector, clip[:3])
    assert titles_of(shown) == ["image", "anomaly map"]
    np.testing.assert_array_equal(data_of(shown.pictures_["map"]), detector.anomaly_map(clip[:3]))


def test_maps_share_one_scale_of_colours(gray):
    shown = AnomalyMapDisplay.from_estimator(Mapper().fit(), gray)
    assert [picture.get_clim() for picture in shown.pictures_["map"]] == [(0, 4), (0, 4)]
    assert (shown.colorbar_.vmin, shown.colorbar_.vmax) == (0, 4)
    assert shown.colorbar_.extend == "max"
    shown.pictures_["map"][1].set_clim(-1, 7)
    assert shown.pictures_["map"][0].get_clim() == (-1, 7)


@pytest.mark.parametrize(
    ("value_range", "clim", "extend"),
    [
        (None, (0, 10), "neither"),
        ((-1, 11), (-1, 11), "neither"),
        (np.array([1, 20]), (1, 20), "min"),
        ([1, 9], (1, 9), "both"),
    ],
)
def test_maps_take_a_range_of_values(gray, value_range, clim, extend):
    maps = Mapper().fit().anomaly_map(gray)
    shown = AnomalyMapDisplay.from_predictions(gray, maps, value_range=value_range)
    assert {picture.get_clim() for picture in shown.pictures_["map"]} == {clim}
    assert shown.colorbar_.extend == extend


def test_maps_that_are_constant_are_drawn():
    images = np.zeros((1, 1, 2, 2))
    shown = AnomalyMapDisplay.from_predictions(images, images[:, 0], predicted_masks=images[:, 0])
    shown.figure_.draw_without_rendering()
    assert np.all(data_of(shown.pictures_["image"]) == 0)
    assert not sides_of(shown.outlines_["predicted"][0])


def test_maps_of_images_in_colour_of_any_range():
    images = np.random.default_rng(0).uniform(-3, 9, size=(2, 3, 4, 5))
    maps = images.mean(axis=1)
    shown = AnomalyMapDisplay.from_predictions(images, maps, inpainted=images / 2 + 10)
    assert titles_of(shown) == ["image", "inpainted", "anomaly map"]
    drawn = np.concatenate([data_of(shown.pictures_[kind]) for kind in ("image", "inpainted")])
    assert drawn.shape == (4, 4, 5, 3)
    assert (drawn.min(), drawn.max()) == (0, 1)
    both = np.moveaxis(np.concatenate([images, images / 2 + 10]), 1, -1)
    np.testing.assert_allclose(drawn, (both - both.min()) / np.ptp(both))
    # The map lies over gray, so that colours do not mix.
    below, above = shown.axes_[0, 2].images
    assert below.get_array().shape == (4, 5)
    assert above is shown.pictures_["map"][0]
    assert shown.outlines_ == {}


def test_maps_beside_true_masks(gray):
    masks = np.zeros((2, 3, 4), dtype=np.uint8)
    masks[0, 1, 1:3] = 255
    shown = AnomalyMapDisplay.from_estimator(Mapper().fit(), gray, masks=masks, name="D")
    assert titles_of(shown)[-1] == "masks"
    assert legend_of(shown.axes_[-1, -1]) == ["true", "predicted"]
    # The side between the two pixels does not belong to the outline.
    assert sides_of(shown.outlines_["true"][0]) == square(1, 1) ^ square(2, 1)
    assert sides_of(shown.outlines_["true"][1]) == set()
    assert sides_of(shown.outlines_["predicted"][0]) == square(2, 1)
    alone = AnomalyMapDisplay.from_predictions(gray, masks, masks=masks)
    assert titles_of(alone) == ["image", "anomaly map", "true mask"]


def test_maps_of_rows_of_pixels_are_those_of_images(gray):
    rows = gray.reshape(2, -1)
    shown = AnomalyMapDisplay.from_estimator(Mapper(image_shape=(1, 3, 4)).fit(), rows)
    assert titles_of(shown) == ["image", "inpainted", "anomaly map", "predicted mask"]
    np.testing.assert_allclose(data_of(shown.pictures_["image"]), gray[:, 0] / 200, rtol=1e-6)


def test_maps_of_a_table_are_one_heat_map():
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame({"width": [100, 100, 150], "height": [60, 120, 100]})
    shown = AnomalyMapDisplay.from_estimator(Mapper().fit(), X, masks=X == 150)
    assert shown.axes_.tolist() == [[shown.ax_]]
    (picture,) = shown.pictures_["map"]
    np.testing.assert_array_equal(picture.get_array(), [[0, 4], [0, 2], [5, 0]])
    assert picture.get_clim() == (0, 4)
    assert [label.get_text() for label in shown.ax_.get_xticklabels()] == ["width", "height"]
    assert sides_of(shown.outlines_["predicted"][0]) == square(1, 0) | square(0, 2)
    assert sides_of(shown.outlines_["true"][0]) == square(0, 2)
    assert legend_of(shown.ax_) == ["true", "predicted"]
    assert shown.ax_.get_title(loc="left") == "Mapper"


def test_maps_of_a_table_name_the_features_there_is_room_for():
    maps = np.eye(30, 150)
    shown = AnomalyMapDisplay.from_predictions(maps, maps)
    labels = [label.get_text() for label in shown.ax_.get_xticklabels()]
    assert labels == [f"x{column}" for column in range(0, 150, 3)]
    names = [f"feature {column}" for column in range(150)]
    named = AnomalyMapDisplay.from_predictions(maps, maps, feature_names=names, name="D")
    assert [label.get_text() for label in named.ax_.get_xticklabels()] == names[::3]
    assert named.ax_.get_title() == "D"


def test_maps_take_axes_and_the_style_of_images(gray):
    _, (left, right) = plt.subplots(1, 2)
    maps = gray[:, 0]
    shown = AnomalyMapDisplay.from_predictions(gray, maps, ax=left, cmap="magma", alpha=0.2)
    assert shown.ax_ is left
    assert {picture.get_cmap().name for picture in shown.pictures_["map"]} == {"magma"}
    assert {picture.get_alpha() for picture in shown.pictures_["map"]} == {0.2}
    table = AnomalyMapDisplay.from_predictions(maps[0], maps[0], ax=right)
    assert table.ax_ is right
    assert plt.get_fignums() == [left.figure.number]
    with pytest.raises(ValueError, match="part of a grid"):
        shown.plot(ax=left.figure.add_axes((0, 0, 1, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 3, 4))}, r"got shape .* pass images\[:, np.newaxis\]"),
        ({"images": np.zeros(4)}, r"must be an array of shape .* got shape \(4,\)"),
        ({"images": np.zeros((2, 3, 4, 5))}, r"channels last.* pass np.moveaxis"),
        ({"images": np.zeros((2, 1, 4, 3))}, r"maps has shape \(2, 3, 4\), .* \(2, 4, 3\)"),
        ({"images": np.zeros((2, 3))}, r"maps has shape .* need maps of \(2, 3\)"),
        ({"maps": np.full((2, 3, 4), np.nan)}, "maps contains NaN"),
        ({"inpainted": np.zeros((2, 1, 3, 5))}, r"inpainted has shape .*, but images has"),
        ({"predicted_masks": np.zeros((2, 1, 3, 4))}, "predicted_masks has shape .*, but maps"),
        ({"masks": np.zeros((1, 3, 4))}, r"^masks has shape .*, but maps has"),
        ({"value_range": (2, 1)}, r"must be two numbers \(low, high\), got \(2, 1\)"),
        ({"value_range": (0, np.inf)}, "must be two numbers"),
        ({"value_range": 3}, "must be two numbers"),
    ],
)
def test_maps_whose_shapes_disagree_are_an_error(gray, changes, message):
    given = {"images": gray, "maps": np.zeros((2, 3, 4))} | changes
    with pytest.raises(ValueError, match=message):
        AnomalyMapDisplay.from_predictions(**given)
    assert not plt.get_fignums()


def test_maps_need_as_many_names_as_features():
    with pytest.raises(ValueError, match="1 feature_names for 2 features"):
        AnomalyMapDisplay.from_predictions(np.eye(2), np.eye(2), feature_names=["a"])


def test_maps_of_too_many_images_are_refused_before_the_work(monkeypatch):
    images = np.zeros((21, 1, 2, 2))
    detector = Mapper().fit()
    monkeypatch.setattr(Mapper, "inpaint", lambda *_: pytest.fail("too late"))
    for draw in (
        lambda: AnomalyMapDisplay.from_estimator(detector, images),
        lambda: AnomalyMapDisplay.from_predictions(images, images[:, 0]),
    ):
        with pytest.raises(ValueError, match="21 images, but at most 20"):
            draw()


def test_maps_need_a_fitted_detector(gray):
    with pytest.raises(NotFittedError):
        AnomalyMapDisplay.from_estimator(Mapper(), gray)


# Anomaly maps as files


def read(path):
    with pytest.importorskip("PIL.Image").open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def test_overlays_by_hand(tmp_path, gray):
    shown = ["good/1.jpg", tmp_path / "bad" / "2.png"]
    masks = np.zeros((2, 3, 4))
    masks[1, 0, 0] = 7
    folder = tmp_path / "new" / "overlays"
    paths = AnomalyMapDisplay.save_overlays(Mapper().fit(), gray, folder, shown, masks=masks)
    assert [path.parent for path in paths] == [folder, folder]
    assert paths[0].name == "good_1.jpg.png"
    assert paths[1].name.endswith("_bad_2.png.png")
    first, second = map(read, paths)
    # Values of the maps are 0 but for 10 and 2, at the ends and in the middle of 0 to 4.
    expected = np.repeat(gray[0, 0][..., None], 3, axis=-1).astype(float)
    yellow = 255 * np.array(matplotlib.colormaps["viridis"](1.0)[:3])
    expected[1, 2] = 0.4 * 200 + 0.6 * yellow
    np.testing.assert_allclose(first, expected, atol=0.51)
    blue = np.rint(255 * np.array(matplotlib.colors.to_rgb("deepskyblue"))).astype(int)
    around = [(0, 1), (1, 0), (1, 1)]
    assert {place for place in np.ndindex(3, 4) if (second[place] == blue).all()} == set(around)
    assert second[0, 0].tolist() == [100, 100, 100]
    assert not plt.get_fignums()


def test_overlays_cover_the_more_the_higher_the_value(tmp_path):
    values = np.linspace(0, 4, 9)
    images = np.zeros((1, 3, 1, 9), dtype=np.uint8)
    images[0, 2] = 100  # blue
    detector = SimpleNamespace(anomaly_map=lambda X: values[None, None])
    given = {"value_range": (0, 4), "cmap": matplotlib.colors.ListedColormap(["red"])}
    (path,) = AnomalyMapDisplay.save_overlays(detector, images, tmp_path, [7], alpha=1, **given)
    assert path == tmp_path / "7.png"
    (row,) = read(path)
    assert row[:5].tolist() == [[0, 0, 100]] * 5  # the lower half
    assert (np.diff(row[4:, 0]) > 0).all()
    assert row[-1].tolist() == [255, 0, 0]
    (path,) = AnomalyMapDisplay.save_overlays(detector, images, tmp_path, [7], alpha=0, **given)
    np.testing.assert_array_equal(read(path), np.moveaxis(images[0], 0, -1))


def test_overlays_do_not_depend_on_the_batch(tmp_path, gray):
    images = np.concatenate([gray, gray + 30, gray // 2])
    names = [f"{number}.png" for number in range(6)]
    detector = Mapper().fit()
    whole = AnomalyMapDisplay.save_overlays(detector, images, tmp_path / "whole", names)
    for rows in (slice(0, 1), slice(1, 6)):
        parts = AnomalyMapDisplay.save_overlays(
            detector, images[rows], tmp_path / "parts", names[rows]
        )
        for path, other in zip(parts, whole[rows], strict=True):
            assert path.read_bytes() == other.read_bytes()


def test_overlays_of_other_numbers_and_of_rows_of_pixels(tmp_path, gray):
    deep = gray.astype(np.uint16) * 300
    quiet = SimpleNamespace(anomaly_map=lambda X: np.zeros((2, 3, 4)), map_range_=(0, 0))
    paths = AnomalyMapDisplay.save_overlays(quiet, deep, tmp_path, ["a", "b"], value_range=(0, 0))
    expected = 255 * (gray[0, 0] - 100.0) / 100  # from black to white
    np.testing.assert_allclose(read(paths[0])[..., 1], expected, atol=0.51)
    rows, detector = gray.reshape(2, -1), Mapper(image_shape=(1, 3, 4)).fit()
    (path, _) = AnomalyMapDisplay.save_overlays(detector, rows, tmp_path, ["rows", "c"])
    (same, _) = AnomalyMapDisplay.save_overlays(Mapper().fit(), gray, tmp_path, ["images", "d"])
    assert path.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"estimator": IsolationForest()}, TypeError, "IsolationForest has no maps. Pass a det"),
        ({"estimator": Mapper()}, NotFittedError, "not fitted"),
        ({"X": np.zeros((2, 5))}, ValueError, r"need images.*\(2, 5\). For a table use from"),
        ({"X": np.zeros((2, 3, 4))}, ValueError, r"got shape \(2, 3, 4\). For gray images pass"),
        ({"names": ["a"]}, ValueError, "1 names for 2 images"),
        ({"names": ["a/b", "a_b"]}, ValueError, "a/b and a_b would both be written to a_b.png"),
        ({"masks": np.zeros((2, 4, 3))}, ValueError, "masks has shape .* but X has maps of shape"),
        ({"value_range": (2, 1)}, ValueError, r"must be two numbers \(low, high\)"),
        ({"alpha": 2}, ValueError, "alpha must be a number from 0 to 1, got 2"),
    ],
)
def test_overlays_that_cannot_be_are_an_error(tmp_path, gray, changes, error, message):
    given = {"estimator": Mapper().fit(), "X": gray, "names": ["a", "b"]} | changes
    with pytest.raises(error, match=message):
        AnomalyMapDisplay.save_overlays(folder=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# Contributions of columns


def bars_of(shown):
    """Lengths by the labels beside them, from the top down."""
    labels = [label.get_text() for label in shown.ax_.get_yticklabels()]
    places = shown.ax_.transData.transform([(0, bar.get_y()) for bar in shown.bars_])[:, 1]
    assert (np.diff(places) < 0).all()
    return dict(zip(labels, (bar.get_width() for bar in shown.bars_), strict=True))


def test_contributions_of_a_pipeline():
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["a", "b", "c"])
    detector = G2DOutlierDetector(classifier=NetworkClassifier(max_steps=2), random_state=0)
    pipeline = make_pipeline(StandardScaler(), detector).fit(X)
    shown = ContributionDisplay.from_estimator(pipeline, X.iloc[[5]])
    parts = dict(zip("abc", detector.explain(pipeline[:-1].transform(X))[5], strict=True))
    assert bars_of(shown) == pytest.approx(parts)
    assert list(bars_of(shown)) == sorted(parts, key=parts.get, reverse=True)
    assert shown.ax_.get_title() == "Pipeline"
    assert shown.figure_ is shown.ax_.figure
    for rows in (X, X.iloc[5]):
        with pytest.raises(ValueError, match=r"X must be one row, .* Pass X\[\[i\]\], or X\.iloc"):
            ContributionDisplay.from_estimator(pipeline, rows)
    assert plt.get_fignums() == [shown.figure_.number]


def test_contributions_beyond_the_largest_are_added_up():
    shown = ContributionDisplay.from_predictions([3.0, *[1.0] * 9, 0.5, 7.0, 0.25], name="Row 4")
    largest = {"x11": 7, "x0": 3} | {f"x{column}": 1 for column in range(1, 9)}
    assert bars_of(shown) == largest | {"3 others": 1.75}
    colors = [bar.get_facecolor() for bar in shown.bars_]
    assert len(set(colors[:-1])) == 1
    assert colors[-1] not in colors[:-1]
    assert shown.ax_.get_title() == "Row 4"
    _, ax = plt.subplots()
    assert shown.plot(ax=ax, n_columns=12, color="black") is shown
    assert shown.ax_ is ax
    assert list(bars_of(shown))[-2:] == ["x10", "1 other"]
    assert {bar.get_facecolor() for bar in shown.bars_} == {(0, 0, 0, 1)}


@pytest.mark.parametrize(
    ("contributions", "names", "message"),
    [
        ([[1.0, 2.0]], None, r"those of one row, .* got shape \(1, 2\)"),
        ([1.0, -2.0], None, "Negative values"),
        ([1.0, np.nan], None, "contributions contains NaN"),
        ([1.0, 2.0], ["a"], "1 column_names for 2 columns"),
    ],
)
def test_contributions_that_are_none_are_an_error(contributions, names, message):
    with pytest.raises(ValueError, match=message):
        ContributionDisplay.from_predictions(contributions, column_names=names)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("display", "missing"), [(AnomalyMapDisplay, "no maps"), (LossCurveDisplay, "no losses")]
)
def test_a_detector_without_what_is_drawn_is_named(display, missing):
    X = np.random.default_rng(0).normal(size=(30, 2))
    given = {"X": X} if display is AnomalyMapDisplay else {}
    with pytest.raises(TypeError, match=f"IsolationForest .*{missing}. Pass a detector that has"):
        display.from_estimator(IsolationForest(n_estimators=3).fit(X), **given)
