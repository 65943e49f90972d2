"""Callbacks see every step of every stage, may score at each, and may stop a stage."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.callback import ProgressBar
from sklearn.model_selection import GridSearchCV

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import (
    AdversarialInpainting,
    CellInpainting,
    MaskedInpainting,
    PatchNet,
    UNet,
)
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit

EXAMPLE = Path(__file__).parent.parent / "examples" / "research" / "tensorboard_curves.py"


class Recorder:
    """Keeps what it is told of every step; stops each stage after `stop_after` steps."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.stages = {}
        self.torn_down = False

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if context.task_name != "step":
            return False
        steps = self.stages.setdefault(context.parent.task_name, [])
        steps.append(metadata)
        return len(steps) == self.stop_after

    def teardown(self, estimator, context):
        self.torn_down = True


class Interrupt(Recorder):
    """Presses Ctrl-C in the second step of a stage."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def on_fit_task_end(self, estimator, context):
        stage = context.parent.task_name if context.task_name == "step" else None
        if stage == self.stage and context.task_id == 1:
            raise KeyboardInterrupt


class Scorer(Recorder):
    """Keeps what the detector would make of some rows after every step."""

    def __init__(self, X):
        super().__init__()
        self.X = X

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "step":
            name = context.parent.task_name
            if name == "generator":
                made = fitted_estimator.sample_outliers(20, random_state=0)
            else:
                made = fitted_estimator.score_samples(self.X)
            self.stages.setdefault(name, []).append(made)


def quick_g2d(n_gan_steps=5, **params):
    """Trains a generator for some steps, a classifier for three."""
    return G2DOutlierDetector(
        generator=WassersteinGAN(max_steps=n_gan_steps),
        classifier=NetworkClassifier(max_steps=3),
        random_state=0,
        **params,
    )


def quick_avid(n_steps=5, **params):
    return AVIDDetector(training=CellInpainting(max_steps=n_steps), random_state=0, **params)


def quick_avid_on_images(training):
    return AVIDDetector(
        training=training,
        inpainter=UNet(channels=2),
        detector=PatchNet(channels=2),
        region_size=12,
        random_state=0,
    )


def test_a_callback_sees_the_losses_of_every_step(blobs):
    recorder = Recorder()
    detector = quick_g2d(12).set_callbacks(recorder).fit(blobs[0])
    assert {name: len(steps) for name, steps in recorder.stages.items()} == {
        "generator": 12,
        "classifier": 3,
    }
    for stage, loss in [("generator", "critic_loss"), ("classifier", "classifier_loss")]:
        seen = [step[loss] for step in recorder.stages[stage]]
        np.testing.assert_array_equal(np.float32(seen), detector.history_[loss])
    assert recorder.torn_down


def test_the_default_generator_has_no_stage(blobs):
    recorder = Recorder()
    G2DOutlierDetector(classifier=NetworkClassifier(max_steps=3)).set_callbacks(recorder).fit(
        blobs[0]
    )
    assert list(recorder.stages) == ["classifier"]


def test_a_callback_can_stop_early(blobs):
    X_train, X_test, _ = blobs
    detector = G2DOutlierDetector(generator=WassersteinGAN(max_steps=100), random_state=0)
    detector.set_callbacks(Recorder(7)).fit(X_train)
    assert detector.n_iter_ == 7
    assert detector.snapshots_[-1].step == 7
    assert len(detector.history_["classifier_loss"]) == 7
    assert np.isfinite(detector.score_samples(X_test)).all()


@pytest.mark.parametrize("make", [quick_g2d, quick_avid])
@pytest.mark.parametrize("callback", [Recorder, Scorer])
def test_callbacks_do_not_change_the_result(blobs, make, callback):
    plain, watched = make(), make()
    watched.set_callbacks(callback() if callback is Recorder else callback(blobs[1]))
    np.testing.assert_array_equal(
        plain.fit(blobs[0]).score_samples(blobs[1]), watched.fit(blobs[0]).score_samples(blobs[1])
    )


def test_teardown_also_after_an_error():
    recorder = Recorder()
    detector = quick_g2d().set_callbacks(recorder)
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.full((5, 2), np.nan))
    assert recorder.torn_down


@pytest.mark.parametrize(
    ("make", "stage"),
    [(quick_g2d, "generator"), (quick_g2d, "classifier"), (quick_avid, "networks")],
)
def test_an_interrupt_leaves_the_former_state(blobs, make, stage):
    X_train, X_test, _ = blobs
    detector = make().fit(X_train)
    scores = detector.score_samples(X_test)
    interrupt = Interrupt(stage)
    with pytest.raises(KeyboardInterrupt):
        detector.set_callbacks(interrupt).fit(X_train[:100])
    assert interrupt.torn_down
    np.testing.assert_array_equal(detector.score_samples(X_test), scores)


@pytest.mark.parametrize(
    ("make", "grid", "stages", "n_jobs"),
    [
        (quick_g2d, {"n_neighbors": [5, 10]}, ["generator", "classifier"], 1),
        (quick_g2d, {"n_neighbors": [5, 10]}, ["generator", "classifier"], 2),
        (quick_avid, {"combination": ["excess", "detector"]}, ["networks"], 1),
    ],
)
def test_progress_bar(blobs, capsys, make, grid, stages, n_jobs):
    _, X, y = blobs
    detector = make()
    detector.set_callbacks(ProgressBar()).fit(X[y == 1])
    out = capsys.readouterr().out
    for stage in stages:
        assert f"{type(detector).__name__} - {stage}" in out
    search = GridSearchCV(
        make(),
        grid,
        scoring=SCORERS["outlier_roc_auc"],
        cv=NormalOnlySplit(2),
        n_jobs=n_jobs,
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    out = capsys.readouterr().out
    assert "GridSearchCV" in out
    assert type(detector).__name__ in out
    first, second = search.cv_results_["mean_test_score"]
    assert first != second


# AVIDDetector, which trains its networks in one stage


@pytest.mark.parametrize("training", [MaskedInpainting, AdversarialInpainting])
def test_a_callback_sees_training_on_images(make_stripes, training):
    X, _ = make_stripes(12, seed=0, size=16)
    recorder = Recorder()
    detector = quick_avid_on_images(training(max_steps=3)).set_callbacks(recorder).fit(X)
    (name, steps), *others = recorder.stages.items()
    assert name == "networks"
    assert not others
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert {"reconstruction_loss", "detector_loss"} <= detector.history_.keys()
    for loss, losses in detector.history_.items():
        np.testing.assert_array_equal(np.float32([step[loss] for step in steps]), losses)


@pytest.mark.parametrize(
    "detector",
    [AVIDDetector(training=CellInpainting()), AVIDDetector.from_paper(data="tables")],
    ids=["default", "paper"],
)
@pytest.mark.parametrize("n_steps", [1, 7])
def test_what_was_trained_until_an_early_stop_is_kept(blobs, detector, n_steps):
    X_train, X_test, _ = blobs
    detector.set_params(training__max_steps=200, random_state=0)
    detector.set_callbacks(Recorder(n_steps)).fit(X_train)
    assert detector.n_iter_ == n_steps
    assert {len(losses) for losses in detector.history_.values()} == {n_steps}
    stopped = [detector.anomaly_map(X_test, source=s) for s in ("inpainter", "detector")]
    detector.set_params(training__max_steps=0).set_callbacks().fit(X_train)
    for source, after in zip(("inpainter", "detector"), stopped, strict=True):
        assert np.isfinite(after).all()
        assert (after != detector.anomaly_map(X_test, source=source)).any()


# What a detector in training makes of other rows


def test_a_callback_scores_after_every_step_of_the_classifier(blobs):
    X_train, X_test, _ = blobs
    scorer = Scorer(X_test)
    detector = quick_g2d().set_callbacks(scorer).fit(X_train)
    scores = scorer.stages["classifier"]
    assert len(scores) == 3
    assert (scores[0] != scores[1]).any()
    np.testing.assert_array_equal(scores[-1], detector.score_samples(X_test))


def test_a_callback_draws_samples_after_every_step_of_the_generator(blobs):
    scorer = Scorer(blobs[1])
    detector = quick_g2d().set_callbacks(scorer).fit(blobs[0])
    samples = scorer.stages["generator"]
    assert len(samples) == 5
    assert (samples[0] != samples[1]).all()
    last = detector.sample_outliers(20, snapshots=detector.snapshots_[-1:], random_state=0)
    assert detector.snapshots_[-1].step == 5
    np.testing.assert_array_equal(samples[-1], last)


@pytest.mark.parametrize("on_images", [False, True])
def test_a_callback_scores_after_every_step_of_avid(blobs, make_stripes, on_images):
    if on_images:
        X_train, X_test = make_stripes(24, seed=0, size=16)[0].reshape(2, 12, 1, 16, 16)
        detector = quick_avid_on_images(MaskedInpainting(max_steps=5))
    else:
        X_train, X_test, _ = blobs
        detector = quick_avid()
    scorer = Scorer(X_test)
    detector.set_callbacks(scorer).fit(X_train)
    scores = scorer.stages["networks"]
    assert len(scores) == 5
    assert np.isfinite(scores).all()
    assert (scores[0] != scores[-1]).any()
    np.testing.assert_allclose(scores[-1], detector.score_samples(X_test), rtol=1e-6)


def test_the_example_logs_losses_and_validation_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    subprocess.run([sys.executable, EXAMPLE, tmp_path, "--steps", "20"], check=True)
    for folder, tags in {
        "G2D": {"classifier/classifier_loss": 20, "classifier/validation AUC": 2},
        "AVID": {"networks/detector_loss": 20, "networks/validation AUC": 2},
    }.items():
        curves = EventAccumulator(str(tmp_path / folder)).Reload()
        for tag, n in tags.items():
            events = curves.Scalars(tag)
            assert len(events) == n
            assert np.isfinite([event.value for event in events]).all()
