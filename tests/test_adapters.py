"""PyOD's detectors as scikit-learn's, scikit-learn's as PyOD's: signs, labels, and nothing else."""

import importlib
import io
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, clone, is_outlier_detector
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.metrics import SCORERS, outlier_roc_auc_score
from sklearn_g2d.model_selection import NormalOnlySplit
from sklearn_g2d.persistence import load, save
from sklearn_g2d.video import ClipDetector

pytest.importorskip("pyod")

from pyod.models.base import BaseDetector
from pyod.models.ecod import ECOD
from pyod.models.embedding import EmbeddingOD, MultiModalOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.lscp import LSCP
from pyod.models.lunar import LUNAR
from pyod.models.ts_od import TimeSeriesOD

from sklearn_g2d.adapters import FromPyOD, ToPyOD

RNG = np.random.default_rng(0)
X_TRAIN = RNG.normal(size=(150, 3))
X_TEST = np.concatenate([RNG.normal(size=(40, 3)), RNG.normal(size=(10, 3)) + 6])
Y_TEST = np.repeat([1, -1], [40, 10])

FAST = NetworkClassifier(max_steps=20)

PYOD = {
    "knn.KNN": {},
    "lof.LOF": {},
    "iforest.IForest": {"n_estimators": 10, "random_state": 1},
    "ecod.ECOD": {},
    "copod.COPOD": {},
    "hbos.HBOS": {},
    "cblof.CBLOF": {"random_state": 1},
    "ocsvm.OCSVM": {},
    "pca.PCA": {},
    "inne.INNE": {"n_estimators": 10, "random_state": 1},
    "lunar.LUNAR": {"n_epochs": 2, "random_state": 1},
    "auto_encoder.AutoEncoder": {"epoch_num": 1, "verbose": 0},
}

# What Numba compiles at the first call, for four seconds each.
COMPILED = {"hbos.HBOS", "cblof.CBLOF"}


def of_pyod(path, **changes):
    module, name = path.split(".")
    return getattr(importlib.import_module(f"pyod.models.{module}"), name)(**PYOD[path] | changes)


class Undecided(BaseEstimator):
    """Every second score is not finite."""

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return np.where(np.arange(len(X)) % 2, np.nan, 0.0)


class Drawing(BaseDetector):
    """Draws from a global generator, as some of PyOD's detectors do, when it is made and fitted."""

    def __init__(self, source="numpy", contamination=0.1):
        super().__init__(contamination=contamination)
        self.source = source
        self._first = self._draw()

    def _draw(self):
        of = {"python": random.random, "numpy": np.random.random, "torch": torch.rand(1).item}
        return of[self.source]()

    def fit(self, X, y=None):
        self.decision_scores_ = self._first + X[:, 0] * self._draw()
        return self._process_decision_scores()

    def decision_function(self, X):
        raise NotImplementedError


def globals_now():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# From PyOD


@parametrize_with_checks([FromPyOD(KNN()), FromPyOD(of_pyod("iforest.IForest"))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path in COMPILED else ()) for path in PYOD],
)
def test_scores_are_pyods_with_the_sign_turned(path):
    theirs = of_pyod(path, contamination=0.05).fit(X_TRAIN)
    ours = clone(FromPyOD(of_pyod(path))).set_params(detector__contamination=0.05).fit(X_TRAIN)
    np.testing.assert_array_equal(ours.score_samples(X_TEST), -theirs.decision_function(X_TEST))
    np.testing.assert_array_equal(ours.training_scores_, -theirs.decision_scores_)
    np.testing.assert_array_equal(ours.predict(X_TEST), 1 - 2 * theirs.predict(X_TEST))
    assert ours.offset_ == -theirs.threshold_
    assert (ours.training_scores_ < ours.offset_).sum() == theirs.labels_.sum()
    assert outlier_roc_auc_score(Y_TEST, ours.score_samples(X_TEST)) > 0.9
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.score_samples(X_TEST), ours.score_samples(X_TEST))


def test_a_fit_leaves_the_detector_alone_and_takes_every_parameter():
    """PyOD's KNN builds its search when it is made, so that a later `metric` has no effect."""
    detector = KNN()
    ours = FromPyOD(detector).set_params(detector__metric="manhattan", detector__n_neighbors=2)
    scores = ours.fit(X_TRAIN).score_samples(X_TEST)
    assert not hasattr(detector, "decision_scores_")
    nearest = NearestNeighbors(n_neighbors=2, metric="manhattan").fit(X_TRAIN)
    np.testing.assert_allclose(-scores, nearest.kneighbors(X_TEST)[0][:, 1])


def test_a_row_at_the_threshold_is_an_inlier():
    """As for PyOD, which labels what is above it."""
    ours = FromPyOD(KNN()).fit(X_TRAIN)
    ours.offset_ = ours.score_samples(X_TEST)[0]
    assert ours.predict(X_TEST)[0] == 1
    assert (ours.predict(X_TEST) == -1).any()


def test_it_is_known_as_a_detector():
    ours = FromPyOD(KNN(n_neighbors=7), random_state=1)
    assert is_outlier_detector(ours)
    assert ours.get_params()["detector__n_neighbors"] == 7
    assert "random_state=1" in repr(ours)
    assert "n_neighbors=7" in repr(ours)
    assert "KNN" in ours._repr_html_()
    frame = pd.DataFrame(X_TRAIN, columns=["a", "b", "c"])
    ours.fit(frame)
    assert (ours.n_features_in_, list(ours.feature_names_in_)) == (3, ["a", "b", "c"])
    with pytest.raises(ValueError, match="feature names"):
        ours.predict(frame[["c", "b", "a"]])


def test_a_search_over_neighbors():
    X, y = np.concatenate([X_TRAIN, X_TEST[40:] - 4.5]), np.repeat([1, -1], [150, 10])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FromPyOD(KNN())),
        {"frompyod__detector__n_neighbors": [1, 30]},
        cv=NormalOnlySplit(2),
        scoring=SCORERS,
        refit=False,
        error_score="raise",
    ).fit(X, y)
    assert (search.cv_results_["mean_test_outlier_roc_auc"] > 0.7).all()
    assert len(set(search.cv_results_["mean_test_outlier_average_precision"])) == 2


def test_frames_judged_by_pyod():
    rows = FunctionTransformer(lambda patches: patches.reshape(len(patches), -1))
    clip = np.random.default_rng(0).normal(size=(20, 1, 16, 24))
    detector = ClipDetector(
        make_pipeline(rows, FromPyOD(IForest(n_estimators=10))),
        patch_size=8,
        overlap=0,
        n_worst=1,
        random_state=0,
    ).fit(clip)
    new = clip[:2].copy()
    new[1, :, :8, :8] += 5
    normal, anomalous = detector.score_samples(new)
    assert anomalous < normal
    assert clone(detector).fit(clip).score_samples(new)[1] == anomalous  # the forest got its seed


@pytest.mark.parametrize(
    "detector",
    [
        IForest(n_estimators=10),
        LUNAR(n_epochs=2),
        Drawing("python"),
        Drawing("numpy"),
        Drawing("torch"),
    ],
    ids=lambda detector: getattr(detector, "source", type(detector).__name__),
)
def test_a_seed_decides_and_global_generators_are_put_back(detector, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)

    def training_scores(seed):
        before = globals_now()
        fitted = FromPyOD(detector, random_state=seed).fit(X_TRAIN)
        assert globals_now() == before
        assert isinstance(getattr(fitted.detector_, "random_state", 0), int)
        return fitted.training_scores_

    first = training_scores(0)
    for draw in (random.random, np.random.random, lambda: torch.rand(1)):
        draw()
    np.testing.assert_array_equal(training_scores(0), first)
    np.testing.assert_array_equal(training_scores(np.random.RandomState(0)), first)
    assert len(seeds) > 0
    assert len(set(seeds)) < len(seeds)
    assert not np.array_equal(training_scores(1), first)


def test_a_seed_of_the_detectors_own_stays():
    ours = [FromPyOD(of_pyod("iforest.IForest"), random_state=seed).fit(X_TRAIN) for seed in (0, 1)]
    np.testing.assert_array_equal(*[detector.training_scores_ for detector in ours])


def test_threads_do_not_disturb_each_other():
    ours = FromPyOD(LUNAR(n_epochs=2), random_state=0)
    alone = clone(ours).fit(X_TRAIN).training_scores_
    copies = [clone(ours) for _ in range(3)]  # beforehand: LUNAR draws when it is made
    with ThreadPoolExecutor(2) as threads:
        fits = [threads.submit(copy.fit, X_TRAIN) for copy in copies]
        for fit in fits:
            np.testing.assert_array_equal(fit.result().training_scores_, alone)


def test_labels_are_warned_of_where_fit_is_called():
    with pytest.warns(UserWarning, match="fit does not use labels") as caught:
        FromPyOD(KNN()).fit(X_TEST, Y_TEST)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (IsolationForest(), "takes a detector of PyOD, got IsolationForest.*without FromPyOD"),
        (make_pipeline(StandardScaler(), KNN()), "got Pipeline.*wrap only its last step"),
        (KNN, r"takes an instance, got the class KNN. Pass KNN\(\)"),
        (None, "got NoneType"),
    ],
)
def test_what_is_not_of_pyod_is_an_error(detector, message):
    with pytest.raises(TypeError, match=message):
        FromPyOD(detector).fit(X_TRAIN)


def test_other_wrong_uses_are_errors():
    with pytest.raises(NotFittedError):
        FromPyOD(KNN()).predict(X_TEST)
    with pytest.raises(ValueError, match="random_state"):
        FromPyOD(KNN(), random_state="x").fit(X_TRAIN)
    with pytest.raises(ValueError, match=r"contamination of KNN must be a number.*'filter'.*=\.1"):
        FromPyOD(KNN(contamination="filter")).fit(X_TRAIN)
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        FromPyOD(ECOD()).fit(X_TRAIN[:1])
    ours = FromPyOD(KNN()).fit(X_TRAIN)
    with pytest.raises(ValueError, match="2 features"):
        ours.score_samples(X_TEST[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        ours.fit(np.full((9, 3), np.nan))
    assert ours.training_scores_.shape == (150,)  # of the former fit


def test_scores_that_are_not_finite_are_errors():
    with pytest.raises(ValueError, match="75 of 150 scores of Undecided are NaN or infinite"):
        ToPyOD(Undecided()).fit(X_TRAIN)
    ours = FromPyOD(KNN()).fit(X_TRAIN)
    ours.detector_.decision_function = lambda X: np.array([np.inf, 0.0])
    with pytest.raises(ValueError, match="1 of 2 scores of KNN"):
        ours.predict(X_TEST[:2])


def test_files_name_what_has_to_be_trusted():
    ours = FromPyOD(ECOD()).fit(X_TRAIN)
    save(ours, file := io.BytesIO())
    with pytest.raises(ModelFileError, match=r"pyod\.models\.ecod\.ECOD"):
        load(io.BytesIO(file.getvalue()))
    loaded = load(io.BytesIO(file.getvalue()), trusted=[ECOD])
    np.testing.assert_array_equal(loaded.predict(X_TEST), ours.predict(X_TEST))
    with pytest.raises(UnsupportedObjectError, match=r"joblib\.dump"):
        save(FromPyOD(of_pyod("lunar.LUNAR")).fit(X_TRAIN), io.BytesIO())


def test_without_pyod_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "sklearn_g2d.adapters")
    monkeypatch.setitem(sys.modules, "pyod.models.base", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_g2d\[pyod\]'"):
        importlib.import_module("sklearn_g2d.adapters")


# To PyOD


@pytest.mark.parametrize(
    "detector",
    [
        G2DOutlierDetector(classifier=FAST, random_state=0),
        make_pipeline(StandardScaler(), G2DOutlierDetector(classifier=FAST, random_state=0)),
        make_pipeline(StandardScaler(), IsolationForest(n_estimators=10, random_state=0)),
        KernelDensity(),
    ],
    ids=["G2D", "G2D in a Pipeline", "forest in a Pipeline", "density"],
)
def test_everything_of_pyods_interface(detector):
    theirs = ToPyOD(detector, contamination=0.1).fit(X_TRAIN)
    fitted = clone(detector).fit(X_TRAIN)
    assert isinstance(theirs, BaseDetector)
    np.testing.assert_array_equal(theirs.decision_function(X_TEST), -fitted.score_samples(X_TEST))
    assert theirs.threshold_ == np.percentile(theirs.decision_scores_, 90)
    assert theirs.labels_.sum() == 15
    flagged = theirs.decision_function(X_TEST) > theirs.threshold_
    np.testing.assert_array_equal(theirs.predict(X_TEST), flagged)
    assert theirs.predict(X_TEST)[40:].all()
    for method in ("linear", "unify"):
        probability = theirs.predict_proba(X_TEST, method=method)
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        assert outlier_roc_auc_score(Y_TEST, -probability[:, 1]) > 0.95
    _, confidence = theirs.predict(X_TEST, return_confidence=True)
    assert confidence.shape == (50,)
    assert set(theirs.predict_with_rejection(X_TEST)) <= {-2, 0, 1}
    again = pickle.loads(pickle.dumps(theirs))
    np.testing.assert_array_equal(again.predict(X_TEST), theirs.predict(X_TEST))


@pytest.mark.filterwarnings("ignore:Function fit_predict is deprecated")
def test_fit_predict_gives_the_labels():
    theirs = ToPyOD(KernelDensity(), contamination=0.2)
    np.testing.assert_array_equal(theirs.fit_predict(X_TRAIN), theirs.labels_)


def test_training_scores_are_out_of_fold_where_there_are_such():
    ours = G2DOutlierDetector(classifier=FAST, random_state=0)
    expected = -clone(ours).fit(X_TRAIN).training_scores_
    assert not np.array_equal(expected, -clone(ours).fit(X_TRAIN).score_samples(X_TRAIN))
    np.testing.assert_array_equal(ToPyOD(ours).fit(X_TRAIN).decision_scores_, expected)
    nested = make_pipeline(make_pipeline(FunctionTransformer(), ours))
    np.testing.assert_array_equal(ToPyOD(nested).fit(X_TRAIN).decision_scores_, expected)


def test_a_frozen_detector_is_asked_for_the_scores_of_these_rows():
    ours = G2DOutlierDetector(classifier=FAST, random_state=0).fit(X_TRAIN)
    for frozen in (FrozenEstimator(ours), make_pipeline(FrozenEstimator(ours))):
        theirs = ToPyOD(frozen).fit(X_TRAIN[::-1])
        np.testing.assert_array_equal(theirs.decision_scores_, -ours.score_samples(X_TRAIN[::-1]))


def test_lof_of_scikit_learn_becomes_that_of_pyod():
    ours = ToPyOD(LocalOutlierFactor(novelty=True)).fit(X_TRAIN)
    theirs = LOF().fit(X_TRAIN)
    np.testing.assert_array_equal(ours.decision_scores_, theirs.decision_scores_)
    np.testing.assert_array_equal(ours.predict(X_TEST), theirs.predict(X_TEST))


def test_there_and_back():
    theirs, again = KNN().fit(X_TRAIN), ToPyOD(FromPyOD(KNN())).fit(X_TRAIN)
    for name in ("decision_scores_", "threshold_", "labels_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(theirs, name))
    for method in ("decision_function", "predict", "predict_proba", "predict_confidence"):
        np.testing.assert_array_equal(
            getattr(again, method)(X_TEST), getattr(theirs, method)(X_TEST)
        )
    forest = IsolationForest(n_estimators=10, random_state=0)
    ours = FromPyOD(ToPyOD(forest)).fit(X_TRAIN)
    np.testing.assert_array_equal(
        ours.score_samples(X_TEST), clone(forest).fit(X_TRAIN).score_samples(X_TEST)
    )


def test_parameters_of_the_detector_inside():
    theirs = ToPyOD(G2DOutlierDetector(classifier=FAST))
    copy = clone(theirs).set_params(detector__n_neighbors=3, contamination=0.2)
    assert (copy.detector.n_neighbors, theirs.detector.n_neighbors) == (3, 20)
    assert "contamination=0.2" in repr(copy)
    assert "n_neighbors=3" in repr(copy)
    assert "G2DOutlierDetector" in copy._repr_html_()


def test_it_works_within_lscp():
    ensemble = LSCP(
        [
            ToPyOD(G2DOutlierDetector(classifier=FAST, random_state=0)),
            ToPyOD(IsolationForest(n_estimators=10, random_state=0)),
            KNN(),
        ],
        random_state=0,
        n_bins=3,
    ).fit(X_TRAIN)
    assert outlier_roc_auc_score(Y_TEST, -ensemble.decision_function(X_TEST)) > 0.95
    assert ensemble.predict(X_TEST)[40:].all()


def test_it_works_where_scores_are_combined():
    pytest.importorskip("combo")
    from pyod.models.combination import average, maximization
    from pyod.models.feature_bagging import FeatureBagging
    from pyod.utils.utility import standardizer

    detectors = [ToPyOD(KernelDensity()).fit(X_TRAIN), KNN().fit(X_TRAIN)]
    training = np.column_stack([detector.decision_scores_ for detector in detectors])
    new = np.column_stack([detector.decision_function(X_TEST) for detector in detectors])
    for combine in (average, maximization):
        combined = combine(standardizer(training, new)[1])
        assert outlier_roc_auc_score(Y_TEST, -combined) > 0.95

    forest = ToPyOD(make_pipeline(StandardScaler(), IsolationForest(n_estimators=10)))
    bags = [FeatureBagging(forest, 3, random_state=0).fit(X_TRAIN) for _ in range(2)]
    scores = [bag.decision_function(X_TEST) for bag in bags]
    np.testing.assert_array_equal(*scores)  # the forests got their seeds
    assert outlier_roc_auc_score(Y_TEST, -scores[0]) > 0.95


def test_it_works_in_a_parallel_ensemble():
    pytest.importorskip("suod")
    from pyod.models.suod import SUOD

    ensemble = SUOD([ToPyOD(KernelDensity()), KNN()], n_jobs=1).fit(X_TRAIN)
    assert outlier_roc_auc_score(Y_TEST, -ensemble.decision_function(X_TEST)) > 0.95


def test_it_works_on_time_series():
    series = np.sin(np.arange(300) / 5)
    ours = make_pipeline(StandardScaler(), G2DOutlierDetector(classifier=FAST, random_state=0))
    detector = TimeSeriesOD(ToPyOD(ours), window_size=10).fit(series)
    new = series.copy()
    new[200:205] += 3
    assert 190 <= detector.decision_function(new).argmax() < 215
    assert detector.predict(new)[200:205].all()


def test_it_works_on_embeddings():
    def encode(texts):
        return np.array([[len(text), text.count("a"), text.count(" ")] for text in texts], float)

    texts = ["a word " * (i % 5 + 1) for i in range(60)]
    ours = G2DOutlierDetector(classifier=FAST, random_state=0)
    detector = EmbeddingOD(encode, ToPyOD(ours)).fit(texts)
    np.testing.assert_array_equal(detector.predict([texts[0], "a" * 500]), [0, 1])
    both = MultiModalOD({"text": detector, "table": ToPyOD(KernelDensity())})
    both.fit({"text": texts, "table": X_TRAIN[:60]})
    scores = both.decision_function({"text": [texts[0], "a" * 500], "table": X_TEST[[0, 45]]})
    assert scores[1] > scores[0]


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (KNN(), r"KNN is a detector of PyOD already\. Use it without ToPyOD"),
        (IsolationForest, r"takes an instance, got the class IsolationForest. Pass Iso"),
        (StandardScaler(), "with score_samples, got StandardScaler"),
        (LocalOutlierFactor(), "LocalOutlierFactor has this method if novelty=True"),
        (make_pipeline(StandardScaler(), KNN()), "got Pipeline.*by FromPyOD"),
    ],
)
def test_what_is_no_detector_of_scikit_learn_is_an_error(detector, message):
    with pytest.raises(TypeError, match=message):
        ToPyOD(detector).fit(X_TRAIN)


def test_other_wrong_uses_of_to_pyod_are_errors():
    with pytest.raises(NotFittedError):
        ToPyOD(KernelDensity()).decision_function(X_TEST)
    with pytest.raises(ValueError, match="contamination"):
        ToPyOD(KernelDensity(), contamination=0.7)
    with pytest.raises(TypeError, match=r"ToPyOD is a detector of PyOD.*FromPyOD"):
        SCORERS["outlier_roc_auc"](ToPyOD(KernelDensity()).fit(X_TRAIN), X_TEST, Y_TEST)
