"""Fits that were killed go on from a checkpoint, and come out as if nothing had happened."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.callback import ProgressBar
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, UNet
from sklearn_g2d.callbacks import Checkpoint
from sklearn_g2d.errors import CheckpointError, TrainingDivergedError
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, NetworkClassifier, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit
from sklearn_g2d.persistence import save
from sklearn_g2d.training.trainer import Trainer


def gan(**params):
    generator, classifier = (
        WassersteinGAN(max_steps=70, n_members=2),
        NetworkClassifier(max_steps=70),
    )
    detector = G2DOutlierDetector(
        generator=generator, classifier=classifier, n_neighbors=5, random_state=0
    )
    return detector.set_params(**params)


def paper(**params):
    steps = {"generator__max_steps": 70, "classifier__max_steps": 70}
    return G2DOutlierDetector.from_paper(random_state=0, **steps | params)


def paper_images(**params):
    return paper(
        scaler=G2DOutlierDetector.from_paper("images").scaler,
        generator__generator_network=ConvGenerator(channels=2),
        generator__critic_network=ConvNetwork(channels=2),
        generator__batch_size=4,
        classifier__network=ConvNetwork(channels=2),
        **params,
    )


def avid(**params):
    training = CellInpainting(max_steps=70)
    return AVIDDetector(training=training, random_state=0).set_params(**params)


def avid_images(**params):
    training = MaskedInpainting(max_steps=60, batch_size=4)
    detector = AVIDDetector(training=training, inpainter=UNet(channels=2), random_state=0)
    return detector.set_params(**params)


def avid_paper(**params):
    steps = {"training__max_steps": 70}
    return AVIDDetector.from_paper("tables", random_state=0, **steps | params)


def avid_paper_images(**params):
    small = {"inpainter__channels": 2, "detector__channels": 2, "training__batch_size": 4}
    steps = {"training__max_steps": 60}
    return AVIDDetector.from_paper("images", random_state=0, **small | steps | params)


# How to make a detector, the data's shape, number of stages of training, steps of the last one.
CASES = {
    "G2D": (lambda **p: gan(generator=None, **p), (100, 4), 1, 70),
    "G2D table": (gan, (100, 4), 2, 70),
    "G2D table, paper": (paper, (100, 4), 2, 70),
    "G2D images": (gan, (24, 1, 8, 8), 2, 70),
    "G2D images, paper": (paper_images, (24, 1, 8, 8), 2, 70),
    "AVID table": (avid, (100, 4), 1, 70),
    "AVID table, paper": (avid_paper, (100, 4), 1, 70),
    "AVID images": (avid_images, (24, 1, 16, 16), 1, 60),
    "AVID images, paper": (avid_paper_images, (24, 1, 16, 16), 1, 60),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)
FORKS = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _single_thread():
    """Train in one thread, as processes that are forked have to."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def make(case, **others):
    build, shape, *_ = CASES[case]
    X = np.random.default_rng(0).normal(size=shape)
    return build(**others), X if len(shape) > 2 else X**3


def checksum_of(path):
    """Checksum of a file's contents: networks, snapshots, scales, thresholds, history."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(detector):
    """Checksum of all that a fitted detector is."""
    file = io.BytesIO()
    save(detector, file)
    return hashlib.sha256(file.getvalue()).hexdigest()


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
from sklearn_g2d.g2d import WassersteinGAN

X = np.random.default_rng(0).normal(size=(200, 3))
detector = G2DOutlierDetector(
    generator=WassersteinGAN(max_steps=400), classifier=LogisticRegression(), random_state=0
)
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
    generator = WassersteinGAN(max_steps=400)
    detector = G2DOutlierDetector(
        generator=generator, classifier=LogisticRegression(), random_state=0
    )
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
    alone, first, second, other = (np.random.RandomState(seed) for seed in (3, 3, 3, 8))
    detector, X = make(case, random_state=alone)
    expected = contents(detector.fit(X))
    interrupt(case, path, 0, 55, random_state=first)
    with pytest.raises(CheckpointError, match=r"random_state: RandomState .* there, RandomState"):
        resume(case, path, random_state=other)
    assert contents(resume(case, path, random_state=second)) == expected
    assert second.randint(2**31) == alone.randint(2**31)


@pytest.mark.parametrize("kind", [int, np.random.RandomState])
def test_fits_of_a_loop_over_seeds_have_a_file_each(kind, tmp_path):
    expected = [
        contents(make("G2D", random_state=kind(seed))[0].fit(make("G2D")[1])) for seed in (1, 2)
    ]
    for seed in (1, 2):  # killed in the second fit
        detector, X = make("G2D", random_state=kind(seed))
        detector.set_callbacks(Checkpoint(tmp_path, every=0), Interrupt(0, 55))
        with pytest.raises(KeyboardInterrupt):
            detector.fit(X)
    assert len(os.listdir(tmp_path)) == 2
    assert [
        contents(resume("G2D", tmp_path, random_state=kind(seed))) for seed in (1, 2)
    ] == expected
    assert os.listdir(tmp_path) == []


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
        ({"generator__max_steps": 120}, r"\(generator__max_steps: 70 there, 120 now\)"),
        (
            {"generator__n_critic": 2, "random_state": 1},
            "generator__n_critic: 1 there, 2 now; random_state: 0 there, 1",
        ),
        ({"generator": None}, r"\(generator: WassersteinGAN there, None now\)"),
        ({"features": abs}, "features: None there, <built-in function abs> now"),
        ({"n_generated": 2}, r"\(n_generated: 2.0 there, 2 now\)"),
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


def test_images_of_another_shape_are_another_fit(tmp_path):
    path = tmp_path / "checkpoint"
    X = np.random.default_rng(0).normal(size=(24, 1, 16, 32))
    detector = avid_images().set_callbacks(Checkpoint(path, every=0), Interrupt(0, 55))
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    for other in (X.reshape(24, 1, 32, 16), X.reshape(24, 2, 16, 16)):
        with pytest.raises(
            CheckpointError, match=r"24 images of 1 x 16 x 32 float64, .* there, 24"
        ):
            avid_images().set_callbacks(Checkpoint(path)).fit(other)
    avid_images().set_callbacks(Checkpoint(path)).fit(X)


@pytest.mark.parametrize(
    ("there", "now", "difference"),
    [
        (
            {"classifier": RandomForestClassifier(3, max_depth=30, random_state=0)},
            {"classifier": RandomForestClassifier(3, max_depth=31, random_state=0)},
            r"\(classifier__max_depth: 30 there, 31 now\)",
        ),
        (
            {"features": make_pipeline(StandardScaler(), StandardScaler(with_std=False))},
            {"features": make_pipeline(StandardScaler(), StandardScaler())},
            "features__standardscaler-2__with_std: False there, True now",
        ),
        (
            {"features": make_pipeline(FrozenEstimator(StandardScaler().fit(np.eye(4))))},
            {"features": make_pipeline(FrozenEstimator(StandardScaler().fit(2 * np.eye(4))))},
            r"features__frozenestimator__estimator: StandardScaler .* there, StandardScaler .* now",
        ),
        (
            {"classifier": LogisticRegression(random_state=np.random.RandomState(1))},
            {"classifier": LogisticRegression(random_state=np.random.RandomState(2))},
            r"\(classifier__random_state: RandomState .* there, RandomState .* now\)",
        ),
    ],
)
def test_parameters_count_at_every_depth(tmp_path, there, now, difference):
    """Where the text of a nested estimator would be cut off, or be the same."""
    path = tmp_path / "checkpoint"
    interrupt("G2D table", path, 0, 60, **{"classifier": LogisticRegression()} | there)
    with pytest.raises(CheckpointError, match=difference):
        resume("G2D table", path, **{"classifier": LogisticRegression()} | now)
    resume("G2D table", path, **{"classifier": LogisticRegression()} | there)


def test_settings_of_libraries_make_no_other_fit(interrupted):
    """Not how arrays and estimators are printed."""
    import sklearn

    with sklearn.config_context(print_changed_only=False), np.printoptions(precision=2):
        resume("G2D table", interrupted, verbose=1)


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
    for place in [*rng.integers(len(whole), size=10), *range(-100, 0, 10)]:
        other = bytearray(whole)
        other[place] ^= 1
        damaged.append(bytes(other))
    torch.save({"x": torch.zeros(3)}, tmp_path / "tensors")
    damaged.append((tmp_path / "tensors").read_bytes())
    detector, X = make("G2D")
    detector.fit(X).save(tmp_path / "detector")
    damaged.append((tmp_path / "detector").read_bytes())
    for content in damaged:
        interrupted.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint' is no checkpoint of sklearn_g2d"):
            resume("G2D table", interrupted)
        assert interrupted.read_bytes() == content
    interrupted.write_bytes(whole)
    resume("G2D table", interrupted)


def forge(path, state):
    """Put another state into a checkpoint, and a checksum that is right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "state.pt": state}.items():
            archive.writestr(name, content)
        archive.comment = 64 * b"0"
    content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_code(interrupted, tmp_path):
    with zipfile.ZipFile(interrupted) as archive:
        assert json.loads(archive.read("checkpoint.json"))["generator__max_steps"] == "70"
        state = archive.read("state.pt")
    torch.load(io.BytesIO(state), weights_only=True)

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    attack = io.BytesIO()
    torch.save({"random_state": {}, "stages": [Attack()]}, attack)
    attacks = [attack.getvalue(), pickle.dumps(Attack()), b"", state[: len(state) // 2]]
    whole = torch.load(io.BytesIO(state), weights_only=True)
    drawn = whole["random_state"]
    for random_state in ({}, 0, {**drawn, "state": {**drawn["state"], "pos": 10**9}}):
        torch.save({**whole, "random_state": random_state}, changed := io.BytesIO())
        attacks.append(changed.getvalue())
    for content in attacks:
        forge(interrupted, content)
        with pytest.raises(CheckpointError, match="Training cannot go on from"):
            resume("G2D table", interrupted)
    assert not (tmp_path / "attacked").exists()
    forge(interrupted, state)
    resume("G2D table", interrupted)


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
        resume("G2D table", path, generator__gradient_penalty=1e38)
    assert not path.exists()


def test_a_fit_that_is_refused_leaves_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="region_size=99 is larger"):
        resume("AVID images", tmp_path / "checkpoint", region_size=99)
    assert not (tmp_path / "checkpoint").exists()


def test_checkpoints_are_written_no_more_often_than_asked_for(tmp_path, monkeypatch):
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *args: written.append(replace(*args)))
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
        detector = gan(generator__max_steps=60).set_callbacks(*callbacks)
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
    generator, classifier = WassersteinGAN(max_steps=10), LogisticRegression()
    detector = G2DOutlierDetector(generator=generator, classifier=classifier, random_state=0)
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
    detector = G2DOutlierDetector().set_callbacks(Checkpoint(tmp_path))
    make_pipeline(StandardScaler(), detector).fit(X)
    assert os.listdir(tmp_path) == []


def test_a_detector_with_a_checkpoint_can_be_copied_and_saved(tmp_path):
    detector = resume("G2D table", tmp_path / "checkpoint")
    loaded = pickle.loads(pickle.dumps(detector))
    assert contents(loaded) == contents(detector)
