"""Callbacks see every step of every stage, and may stop a stage."""

import numpy as np
import pytest
from sklearn.callback import ProgressBar
from sklearn.model_selection import GridSearchCV

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit


class Recorder:
    """Keeps the losses of every step; stops each stage after `stop_after` steps.

    Stages are told apart `by` their name, or their number among those of one name.
    """

    def __init__(self, stop_after=None, by="task_name"):
        self.stop_after = stop_after
        self.by = by
        self.stages = {}
        self.torn_down = False

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if context.task_name != "step":
            return False
        steps = self.stages.setdefault(getattr(context.parent, self.by), [])
        steps.append(metadata)
        return len(steps) == self.stop_after

    def teardown(self, estimator, context):
        self.torn_down = True


def test_a_callback_sees_the_losses_of_every_step(blobs):
    recorder = Recorder()
    detector = G2DOutlierDetector(max_steps=12, random_state=0).set_callbacks(recorder)
    detector.fit(blobs[0])
    assert {name: len(steps) for name, steps in recorder.stages.items()} == {
        "generator": 12,
        "classifier": 300,
    }
    for stage, loss in [("generator", "critic_loss"), ("classifier", "classifier_loss")]:
        seen = [step[loss] for step in recorder.stages[stage]]
        np.testing.assert_array_equal(np.float32(seen), detector.history_[loss])
    assert recorder.torn_down


def test_a_callback_can_stop_early(blobs):
    X_train, X_test, _ = blobs
    detector = G2DOutlierDetector(max_steps=100, random_state=0).set_callbacks(Recorder(7))
    detector.fit(X_train)
    assert detector.n_iter_ == 7
    assert detector.snapshots_[-1].step == 7
    assert len(detector.history_["classifier_loss"]) == 7
    assert np.isfinite(detector.score_samples(X_test)).all()


def test_callbacks_do_not_change_the_result(blobs):
    plain, watched = (G2DOutlierDetector(max_steps=5, random_state=0) for _ in range(2))
    watched.set_callbacks(Recorder())
    np.testing.assert_array_equal(
        plain.fit(blobs[0]).score_samples(blobs[1]), watched.fit(blobs[0]).score_samples(blobs[1])
    )


def test_teardown_also_after_an_error(blobs):
    recorder = Recorder()
    detector = G2DOutlierDetector(max_steps=5).set_callbacks(recorder)
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.full((5, 2), np.nan))
    assert recorder.torn_down


def test_an_interrupt_leaves_the_former_state(blobs):
    class Interrupt(Recorder):
        def on_fit_task_end(self, estimator, context):
            if context.task_name == "step" and context.parent.task_name == "classifier":
                raise KeyboardInterrupt

    X_train, X_test, _ = blobs
    detector = G2DOutlierDetector(max_steps=5, random_state=0).fit(X_train)
    scores = detector.score_samples(X_test)
    with pytest.raises(KeyboardInterrupt):
        detector.set_callbacks(Interrupt()).fit(X_train[:100])
    np.testing.assert_array_equal(detector.score_samples(X_test), scores)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_bar(blobs, capsys, n_jobs):
    _, X, y = blobs
    bar = ProgressBar()
    detector = G2DOutlierDetector(max_steps=5, n_estimators=2, random_state=0)
    detector.set_callbacks(bar).fit(X[y == 1])
    assert "G2DOutlierDetector - generator" in capsys.readouterr().out
    search = GridSearchCV(
        G2DOutlierDetector(max_steps=5, random_state=0),
        {"n_neighbors": [5, 10]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        n_jobs=n_jobs,
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    out = capsys.readouterr().out
    assert "GridSearchCV" in out
    assert "G2DOutlierDetector" in out


# AVIDDetector, whose stages are pairs of networks


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_callback_sees_the_losses_of_every_pair(blobs, recipe):
    recorder = Recorder(by="task_id")
    detector = AVIDDetector(max_steps=12, n_estimators=2, recipe=recipe, random_state=0)
    detector.set_callbacks(recorder).fit(blobs[0])
    assert {i: len(steps) for i, steps in recorder.stages.items()} == {0: 12, 1: 12}
    for loss, losses in detector.history_.items():
        first, second = (
            np.array([step[loss] for step in steps]) for steps in recorder.stages.values()
        )
        assert (first != second).any()
        np.testing.assert_allclose(losses, (first + second) / 2, rtol=1e-5)
    assert recorder.torn_down


def test_a_callback_sees_training_on_images(make_stripes):
    X, _ = make_stripes(12, seed=0, size=16)
    recorder = Recorder()
    detector = AVIDDetector(max_steps=3, region_size=12, width=2, random_state=0)
    detector.set_callbacks(recorder).fit(X)
    (name, steps), *others = recorder.stages.items()
    assert name == "networks"
    assert not others
    assert [step["step"] for step in steps] == [1, 2, 3]
    for loss in ("reconstruction_loss", "detector_loss"):
        seen = np.float32([step[loss] for step in steps])
        np.testing.assert_array_equal(seen, detector.history_[loss])


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("n_steps", [1, 7])
def test_what_was_trained_until_an_early_stop_is_kept(blobs, recipe, n_steps):
    X_train, X_test, _ = blobs
    params = {"recipe": recipe, "max_steps": 200, "n_estimators": 2, "random_state": 0}
    detector = AVIDDetector(**params).set_callbacks(Recorder(n_steps, by="task_id")).fit(X_train)
    assert detector.n_iter_ == n_steps
    assert {len(losses) for losses in detector.history_.values()} == {n_steps}
    untrained = AVIDDetector(**{**params, "max_steps": 0}).fit(X_train)
    for name in ("inpainter", "detector"):
        stopped, before = (
            by_map.set_params(map=name).anomaly_map(X_test) for by_map in (detector, untrained)
        )
        assert np.isfinite(stopped).all()
        assert (stopped != before).any()


def test_callbacks_do_not_change_the_maps(blobs):
    X_train, X_test, _ = blobs
    plain, watched = (AVIDDetector(max_steps=5, random_state=0) for _ in range(2))
    watched.set_callbacks(Recorder())
    np.testing.assert_array_equal(
        plain.fit(X_train).anomaly_map(X_test), watched.fit(X_train).anomaly_map(X_test)
    )


def test_an_interrupt_between_pairs_leaves_the_former_state(blobs):
    class Interrupt(Recorder):
        def on_fit_task_end(self, estimator, context):
            if context.task_name == "step" and context.parent.task_id == 1:
                raise KeyboardInterrupt

    X_train, X_test, _ = blobs
    detector = AVIDDetector(max_steps=5, n_estimators=2, random_state=0).fit(X_train)
    drawn = detector.anomaly_map(X_test)
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        detector.set_callbacks(interrupt).fit(X_train[:100])
    assert interrupt.torn_down
    np.testing.assert_array_equal(detector.anomaly_map(X_test), drawn)


def test_progress_bar_of_pairs(blobs, capsys):
    _, X, y = blobs
    detector = AVIDDetector(max_steps=5, n_estimators=2, random_state=0)
    detector.set_callbacks(ProgressBar()).fit(X[y == 1])
    out = capsys.readouterr().out
    assert "AVIDDetector - networks #0" in out
    assert "AVIDDetector - networks #1" in out
    search = GridSearchCV(
        AVIDDetector(max_steps=5, random_state=0),
        {"map": ["combined", "detector"]},
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    out = capsys.readouterr().out
    assert "GridSearchCV" in out
    assert "AVIDDetector" in out
    combined, by_detector = search.cv_results_["mean_test_score"]
    assert combined != by_detector
