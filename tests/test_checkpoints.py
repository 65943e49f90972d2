"""Fits that were killed go on from a checkpoint, and come out as if nothing had happened."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.callback import ProgressBar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.callbacks import Checkpoint
from sklearn_g2d.errors import CheckpointError, TrainingDivergedError
from sklearn_g2d.g2d._recipes import G2D_IMAGE_RECIPES, G2D_RECIPES
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit
from sklearn_g2d.training.trainer import Trainer
from sklearn_g2d.utils import files as _files

G2D = {"max_steps": 70, "n_estimators": 2, "n_neighbors": 5, "random_state": 0}
AVID = {"max_steps": 70, "random_state": 0}
SMALL = {"max_steps": 60, "width": 2, "batch_size": 4}

# Class, parameters, whether on images, number of stages of training, and of the last one's steps.
CASES = {
    "G2D table": (G2DOutlierDetector, G2D, False, 2, 70),
    "G2D table, paper": (G2DOutlierDetector, {**AVID, "recipe": "paper"}, False, 2, 70),
    "G2D images": (G2DOutlierDetector, G2D, True, 2, 70),
    "G2D images, paper": (G2DOutlierDetector, {**AVID, **SMALL, "recipe": "paper"}, True, 2, 70),
    "AVID table": (AVIDDetector, {**AVID, "n_estimators": 2}, False, 2, 70),
    "AVID table, paper": (AVIDDetector, {**AVID, "recipe": "paper"}, False, 1, 70),
    "AVID images": (AVIDDetector, {**AVID, **SMALL}, True, 1, 60),
    "AVID images, paper": (AVIDDetector, {**AVID, **SMALL, "recipe": "paper"}, True, 1, 60),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)
FORKS = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Train classifiers briefly, and in one thread, as processes that are forked have to."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for recipes in (G2D_RECIPES, G2D_IMAGE_RECIPES):
            for name, recipe in dict(recipes).items():
                monkeypatch.setitem(recipes, name, replace(recipe, classifier_steps=70))
        yield
    torch.set_num_threads(n_threads)


def make(case, **others):
    cls, params, of_images, *_ = CASES[case]
    rng = np.random.default_rng(0)
    size = 16 if cls is AVIDDetector else 8
    X = rng.normal(size=(24, 1, size, size)) if of_images else rng.normal(size=(100, 4)) ** 3
    return cls(**{**params, **others}), X


def checksum_of(path):
    """Checksum of a file's contents: networks, snapshots, scales, thresholds, history."""
    with safe_open(path, "numpy") as file:
        return file.metadata()["sha256"]


def contents(detector):
    """Checksum of all that a fitted detector is."""
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "detector")
        detector.save(path)
        return checksum_of(path)


@pytest.fixture(scope="module")
def undisturbed():
    """Contents of a detector after a fit without interruption."""

    @cache
    def get(case):
        detector, X = make(case)
        return contents(detector.fit(X))

    return get


class Interrupt:
    """Raises `error` at a step of a stage, as if the process ended there."""

    def __init__(self, stage, step, error=KeyboardInterrupt):
        self.stage, self.step, self.error = stage, step, error

    def setup(self, estimator, context):
        self.n_steps = 0

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "step" and context.parent.task_id == self.stage:
            self.n_steps += 1
            if self.n_steps == self.step:
                raise self.error

    def teardown(self, estimator, context):
        pass


@pytest.fixture
def steps_taken(monkeypatch):
    """Count the steps that trainers take, rather than those that callbacks are shown."""
    taken, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: taken.append(self) or step(self))
    return taken


def interrupt(case, path, stage, step, error=KeyboardInterrupt, **others):
    detector, X = make(case, **others)
    detector.set_callbacks(Checkpoint(path, every=0), Interrupt(stage, step, error))
    with pytest.raises(error):
        detector.fit(X)
    assert path.exists()


def resume(case, path, **others):
    detector, X = make(case, **others)
    return detector.set_callbacks(Checkpoint(path, every=0)).fit(X)


@EVERY_CASE
def test_an_interrupted_fit_ends_like_one_that_was_not(case, undisturbed, tmp_path, steps_taken):
    path = tmp_path / "checkpoint"
    *_, n_stages, n_steps = CASES[case]
    expected = undisturbed(case)
    for stage in range(n_stages):
        interrupt(case, path, stage, 55)
        steps_taken.clear()
    assert contents(resume(case, path)) == expected
    # All that was trained again is what comes after step 50 of the last stage.
    assert len(steps_taken) == n_steps - 50
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("case", ["G2D table", "AVID table"])
def test_a_checkpoint_changes_nothing_about_a_fit(case, undisturbed, tmp_path):
    assert contents(resume(case, tmp_path / "checkpoint")) == undisturbed(case)


def fork_fit(case, path, result, prepare=lambda: None):
    """Fit in another process, which leaves the detector's contents at `result`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        prepare()
        resume(case, path).save(result)
        status = 0
    finally:
        os._exit(status)


def kill_until_done(case, tmp_path, n_kills, seed):
    """Kill a fit at random times, start it again; returns how many times it was killed."""
    path, result = tmp_path / "checkpoint", tmp_path / "result"
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    detector, X = make(case)
    detector.fit(X)
    seconds = time.monotonic() - start
    killed = 0
    while not result.exists():
        child = fork_fit(case, path, result)
        if killed < n_kills:
            time.sleep(rng.uniform(0, 0.7 * seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        killed += os.WIFSIGNALED(status)
    assert not path.exists()
    return killed


class TestKills:
    pytestmark = FORKS

    @pytest.mark.parametrize("case", ["G2D table", "AVID table"])
    def test_kills_at_random_times_leave_no_trace(self, case, undisturbed, tmp_path):
        seed = np.random.SeedSequence().entropy
        killed = kill_until_done(case, tmp_path, n_kills=4, seed=seed)
        print(f"{killed} kills, seed {seed}")
        assert checksum_of(tmp_path / "result") == undisturbed(case)

    @pytest.mark.parametrize("function", ["fsync", "replace", "close", "unlink"])
    def test_kills_while_a_checkpoint_is_written(self, undisturbed, tmp_path, function):
        """Each process lives for one more call of the function than the one before."""
        case = "G2D table"
        path, result = tmp_path / "checkpoint", tmp_path / "result"
        for n_calls in range(20):
            call, left = getattr(os, function), [n_calls]

            def lethal(*args, call=call, left=left, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            prepare = lambda lethal=lethal: setattr(os, function, lethal)  # noqa: E731
            _, status = os.waitpid(fork_fit(case, path, result, prepare), 0)
            assert status in (0, signal.SIGKILL)
            if status == 0:
                break
        assert n_calls > 0
        assert checksum_of(result) == undisturbed(case)


@pytest.mark.slow
@EVERY_CASE
class TestManyKills:
    pytestmark = FORKS

    def test_many_kills_at_random_times_leave_no_trace(self, case, undisturbed, tmp_path):
        for repetition in range(5):
            folder = tmp_path / str(repetition)
            folder.mkdir()
            seed = np.random.SeedSequence().entropy
            killed = kill_until_done(case, folder, n_kills=15, seed=seed)
            print(f"{killed} kills, seed {seed}")
            assert checksum_of(folder / "result") == undisturbed(case)


SCRIPT = """
import sys
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.callbacks import Checkpoint

X = np.random.default_rng(0).normal(size=(200, 3))
detector = G2DOutlierDetector(max_steps=400, classifier=LogisticRegression(), random_state=0)
detector.set_callbacks(Checkpoint(sys.argv[2], every=0)).fit(X).save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_script_goes_on_in_a_new_process(tmp_path):
    path, result = tmp_path / "checkpoint", tmp_path / "result"
    command = [sys.executable, "-c", SCRIPT, result, path]
    process = subprocess.Popen(command)
    stamps = set()
    while len(stamps) < 3:  # what was drawn, then the states after 50 and 100 steps
        assert process.poll() is None
        if path.exists():
            stamps.add(path.stat().st_mtime_ns)
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert path.exists()
    subprocess.run(command, check=True)
    X = np.random.default_rng(0).normal(size=(200, 3))
    classifier = LogisticRegression()
    detector = G2DOutlierDetector(max_steps=400, classifier=classifier, random_state=0)
    assert checksum_of(result) == contents(detector.fit(X))


# What a fit depends on besides its data


def test_a_fit_without_a_seed_repeats_what_it_drew(tmp_path):
    path = tmp_path / "checkpoint"
    state = np.random.get_state()
    try:
        np.random.seed(5)
        detector, X = make("G2D table", random_state=None)
        expected = contents(detector.fit(X))
        np.random.seed(5)
        interrupt("G2D table", path, 0, 3, random_state=None)  # before anything was good
        np.random.seed(6)
        before = np.random.get_state()[1].copy()
        assert contents(resume("G2D table", path, random_state=None)) == expected
        np.testing.assert_array_equal(np.random.get_state()[1], before)
        assert contents(resume("G2D table", path, random_state=None)) != expected
    finally:
        np.random.set_state(state)


@pytest.mark.parametrize("case", ["G2D table", "AVID table"])
def test_a_random_state_is_where_it_would_be(case, tmp_path):
    path = tmp_path / "checkpoint"
    alone, first, second = (np.random.RandomState(seed) for seed in (3, 3, 8))
    detector, X = make(case, random_state=alone)
    expected = contents(detector.fit(X))
    interrupt(case, path, 1, 55, random_state=first)
    assert contents(resume(case, path, random_state=second)) == expected
    assert second.randint(2**31) == alone.randint(2**31)


@pytest.mark.parametrize("case", ["G2D table", "AVID table"])
def test_a_warm_start_goes_on_too(case, tmp_path):
    path = tmp_path / "checkpoint"
    detector, X = make(case, warm_start=True)
    former = pickle.dumps(detector.fit(X))
    expected = contents(detector.fit(2 * X))
    interrupted, resumed, other = (pickle.loads(former) for _ in range(3))
    interrupted.set_callbacks(Checkpoint(path, every=0), Interrupt(0, 60))
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(2 * X)
    other.set_params(warm_start=False).fit(X[:90]).set_params(warm_start=True)
    with pytest.raises(CheckpointError, match=r"another fit \(networks to continue: "):
        other.set_callbacks(Checkpoint(path)).fit(2 * X)
    resumed.set_callbacks(Checkpoint(path, every=0)).fit(2 * X)
    assert contents(resumed) == expected


def test_other_callbacks_are_shown_the_steps_before(tmp_path, capsys):
    """So that one which counts, and stops, does so where it would have."""

    class Stop(Interrupt):
        seen = ()

        def on_fit_task_end(self, estimator, context, *, metadata=None):
            if context.task_name != "step":
                return False
            self.seen = (
                *self.seen,
                metadata[
                    "generator_loss" if metadata.keys() > {"critic_loss"} else "classifier_loss"
                ],
            )
            return context.parent.task_id == self.stage and len(self.seen) == self.step

    path = tmp_path / "checkpoint"
    detector, X = make("G2D table")
    alone, after = Stop(0, 60), Stop(0, 60)
    expected = contents(detector.set_callbacks(alone).fit(X))
    assert detector.n_iter_ == 60
    detector.set_callbacks(Checkpoint(path, every=0), Stop(0, 60), Interrupt(1, 65))
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    detector.set_callbacks(ProgressBar(), Checkpoint(path, every=0), after).fit(X)
    assert contents(detector) == expected
    assert after.seen == alone.seen
    assert "100%" in capsys.readouterr().out


def test_a_stop_is_not_forgotten(tmp_path):
    """The process ends when a callback has asked to stop, before the stage could end."""
    path = tmp_path / "checkpoint"
    detector, X = make("G2D table")

    class Stop(Interrupt):
        def on_fit_task_end(self, estimator, context):
            self.n_steps += context.task_name == "step"
            return context.task_name == "step" and self.n_steps == self.step

    expected = contents(detector.set_callbacks(Stop(0, 50)).fit(X))
    interrupt("G2D table", path, 0, 51)
    detector.set_callbacks(Checkpoint(path, every=0), Stop(0, 50)).fit(X)
    assert contents(detector) == expected


# Files


@pytest.fixture
def interrupted(tmp_path):
    path = tmp_path / "checkpoint"
    interrupt("G2D table", path, 1, 60)
    return path


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"max_steps": 120}, r"\(max_steps: 70 there, 120 now\)"),
        (
            {"n_critic": 2, "random_state": 1},
            "n_critic: None there, 2 now; random_state: 0 there, 1",
        ),
        ({"features": abs}, "features: None there, <built-in function abs> now"),
        (None, "class: G2DOutlierDetector there, AVIDDetector now"),
        (0, "X: 100 rows of 4 float64, sha256 .* there, 99 rows of 4 float64"),
        (1e-12, "X: 100 rows of 4 float64, sha256 .* there, 100 rows of 4 float64"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_and_kept(interrupted, change, difference):
    before = interrupted.read_bytes()
    detector, X = make("G2D table") if change is not None else make("AVID table")
    if isinstance(change, dict):
        detector.set_params(**change)
    elif change == 0:
        X = X[:-1]
    elif change is not None:
        X[7, 2] += change
    detector.set_callbacks(Checkpoint(interrupted, every=0))
    with pytest.raises(CheckpointError, match=f"{difference}.*delete the file"):
        detector.fit(X)
    assert not hasattr(detector, "offset_")
    assert interrupted.read_bytes() == before
    resume("G2D table", interrupted)


def test_functions_are_told_apart_in_every_process(interrupted, tmp_path):
    def features(X):
        return X

    for stage in (0, 1):
        interrupt("G2D table", tmp_path / "other", stage, 60, features=lambda X: X)
    with pytest.raises(CheckpointError, match=r"features: <.*<lambda>> there, <.*features>"):
        resume("G2D table", tmp_path / "other", features=features)
    resume("G2D table", tmp_path / "other", features=lambda X: X)


def test_damaged_files_are_refused_and_kept(interrupted, tmp_path):
    whole = interrupted.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", whole[:100], whole[:-1], whole + b"x", rng.bytes(1000), b"{}"]
    for place in rng.integers(len(whole), size=10):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    save_file({"x": np.zeros(3)}, tmp_path / "tensors")
    damaged.append((tmp_path / "tensors").read_bytes())
    make("G2D table", max_steps=1)[0].fit(make("G2D table")[1]).save(tmp_path / "detector")
    damaged.append((tmp_path / "detector").read_bytes())
    for content in damaged:
        interrupted.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint' is no checkpoint, is damaged"):
            resume("G2D table", interrupted)
        assert interrupted.read_bytes() == content
    interrupted.write_bytes(whole)
    resume("G2D table", interrupted)


def test_nothing_in_a_file_is_code(interrupted):
    with safe_open(interrupted, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sklearn_g2d checkpoint"
    assert json.loads(metadata["identity"])["max_steps"] == "70"


def test_two_fits_of_one_file_find_each_other_out(tmp_path):
    path = tmp_path / "checkpoint"

    class Other(Interrupt):
        def on_fit_task_end(self, estimator, context):
            self.n_steps += context.task_name == "step"
            if self.n_steps == self.step:
                path.unlink()
                interrupt("AVID table", path, 0, 60)

    detector, X = make("G2D table")
    detector.set_callbacks(Other(0, 20), Checkpoint(path, every=0))
    with pytest.raises(CheckpointError, match=r"another fit meanwhile\. Give each"):
        detector.fit(X)
    resume("AVID table", path)  # which was not lost


def test_a_diverged_fit_leaves_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(TrainingDivergedError):
        resume("G2D table", path, gradient_penalty=1e38)
    assert not path.exists()


def test_a_fit_that_is_refused_leaves_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="region_size=99 is larger"):
        resume("AVID images", tmp_path / "checkpoint", region_size=99)
    assert not (tmp_path / "checkpoint").exists()


def test_checkpoints_are_written_no_more_often_than_asked_for(tmp_path, monkeypatch):
    written = []
    write = _files.write
    monkeypatch.setattr(_files, "write", lambda *args: written.append(write(*args)))
    detector, X = make("G2D table")
    detector.set_callbacks(Checkpoint(tmp_path / "checkpoint")).fit(X)
    assert len(written) == 1  # the first one, with what was drawn
    detector.set_callbacks(Checkpoint(tmp_path / "checkpoint", every=0)).fit(X)
    assert len(written) == 1 + 1 + 2  # after 50 steps of either stage
    for every in (-1, float("nan")):
        with pytest.raises(ValueError, match="every must be a number of seconds"):
            Checkpoint("checkpoint", every=every)


# Around the detector


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_a_search_goes_on_with_the_fit_that_was_interrupted(tmp_path, blobs, steps_taken):
    _, X, y = blobs

    def search(*callbacks, **others):
        detector = G2DOutlierDetector(**{**G2D, "max_steps": 60}).set_callbacks(*callbacks)
        grid = {"n_neighbors": [5, 10]}
        scoring = SCORERS["outlier_roc_auc"]
        found = GridSearchCV(detector, grid, scoring=scoring, cv=NormalOnlySplit(2), **others)
        return found.fit(X, y).cv_results_["mean_test_score"]

    expected, n_steps = search(refit=False), len(steps_taken)
    for step in (55, 56):  # of every fit's first stage; the first fit is interrupted
        with pytest.raises(KeyboardInterrupt):
            search(Checkpoint(tmp_path, every=0), Interrupt(0, step), refit=False)
        assert len(os.listdir(tmp_path)) == 1
    steps_taken.clear()
    np.testing.assert_array_equal(search(Checkpoint(tmp_path, every=0), refit=False), expected)
    assert len(steps_taken) == n_steps - 50
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match=r"one file for all the fits of GridSearchCV\. Pass"):
        search(Checkpoint(tmp_path / "file"))


@pytest.mark.slow
def test_a_search_in_several_processes(tmp_path, blobs):
    _, X, y = blobs
    classifier = LogisticRegression()
    detector = G2DOutlierDetector(max_steps=10, classifier=classifier, random_state=0)
    scores = [
        GridSearchCV(
            detector.set_callbacks(*callbacks),
            {"n_neighbors": [5, 10]},
            scoring=SCORERS["outlier_roc_auc"],
            cv=NormalOnlySplit(2),
            n_jobs=n_jobs,
            refit=False,
        )
        .fit(X, y)
        .cv_results_["mean_test_score"]
        for callbacks, n_jobs in [((), 1), ((Checkpoint(tmp_path, every=0),), 2)]
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_belongs_on_a_detector(tmp_path, blobs):
    X, y = blobs[1:]
    with pytest.raises(TypeError, match="not of LogisticRegression: set it on the detector"):
        LogisticRegression().set_callbacks(Checkpoint(tmp_path / "checkpoint")).fit(X, y)
    detector = G2DOutlierDetector(max_steps=2).set_callbacks(Checkpoint(tmp_path))
    make_pipeline(StandardScaler(), detector).fit(X)
    assert os.listdir(tmp_path) == []


def test_a_detector_with_a_checkpoint_can_be_copied_and_saved(tmp_path):
    detector = resume("G2D table", tmp_path / "checkpoint")
    loaded = pickle.loads(pickle.dumps(detector))
    assert contents(loaded) == contents(detector)
