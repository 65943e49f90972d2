"""Training that diverges is taken up again; a fit that fails or is interrupted changes nothing."""

import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import _recipes
from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.g2d._recipes import G2D_RECIPES
from sklearn_g2d.training import loop

# Gradients of this length, and SGD, diverge at the paper's learning rates.
AVID = {"recipe": "paper", "adversarial_weight": 0.0, "max_steps": 60, "random_state": 0}
G2D = {"recipe": "paper", "max_steps": 60, "random_state": 0}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(120, 5))


@pytest.fixture
def classifier_rate(monkeypatch):
    def set_rate(rate):
        recipe = G2D_RECIPES["paper"]
        training = replace(recipe.classifier_training, learning_rate=rate)
        recipe = replace(recipe, classifier_training=training, classifier_steps=120)
        monkeypatch.setitem(G2D_RECIPES, "paper", recipe)

    return set_rate


@pytest.fixture
def generator_rate(monkeypatch):
    def set_rate(rate):
        recipe = replace(G2D_RECIPES["paper"], gan_learning_rate=rate, classifier_steps=60)
        monkeypatch.setitem(G2D_RECIPES, "paper", recipe)

    return set_rate


def fit(detector, X):
    with pytest.warns(ConvergenceWarning) as caught:
        detector.fit(X)
    return [str(warning.message) for warning in caught], caught


def test_a_retry_is_warned_of_and_recorded(X):
    detector = AVIDDetector(reconstruction_weight=1500.0, **AVID)
    (message,), (caught,) = fit(detector, X)
    assert "Training of the networks diverged" in message
    assert "Lower reconstruction_weight, adv" in message
    assert caught.filename == __file__
    retries = detector.history_["networks_retries"]
    assert 1 <= len(retries) <= loop.MAX_RETRIES
    assert f"after steps {', '.join(map(str, retries))})" in message
    assert {len(detector.history_[k]) for k in ("reconstruction_loss", "detector_loss")} == {60}
    assert all(np.isfinite(values).all() for values in detector.history_.values())
    near, far = detector.score_samples(X), detector.score_samples(100 * X)
    assert np.isfinite([near, far]).all()
    assert far.mean() < near.mean()


def test_a_lower_rate_from_the_start_gives_the_same_as_retries_from_the_start(X):
    """Nothing of the attempts that failed is left."""
    retried = AVIDDetector(reconstruction_weight=1500.0, **AVID)
    fit(retried, X)
    retries = retried.history_["networks_retries"]
    assert set(retries) == {0}
    with pytest.MonkeyPatch.context() as monkeypatch:
        recipe = _recipes.AVID_RECIPES["paper"]
        rates = tuple(rate * 0.5 ** len(retries) for rate in recipe.learning_rates)
        recipe = replace(recipe, learning_rates=rates)
        monkeypatch.setitem(_recipes.AVID_RECIPES, "paper", recipe)
        direct = AVIDDetector(reconstruction_weight=1500.0, **AVID).fit(X)
    np.testing.assert_array_equal(direct.score_samples(X), retried.score_samples(X))
    assert "networks_retries" not in direct.history_


def test_a_warm_start_counts_the_steps_of_retries_on(X):
    detector = AVIDDetector(reconstruction_weight=1500.0, warm_start=True, n_estimators=2, **AVID)
    fit(detector, X)
    first = detector.history_["networks_retries"]
    fit(detector.set_params(reconstruction_weight=3000.0), X)
    both = detector.history_["networks_retries"]
    np.testing.assert_array_equal(both[: len(first)], first)
    assert len(both) > len(first)
    assert (both[len(first) :] >= 60).all()
    assert len(detector.history_["detector_loss"]) == detector.n_iter_ == 120


def test_a_classifier_that_diverges(X, classifier_rate):
    classifier_rate(1.0)
    detector = G2DOutlierDetector(**G2D)
    (message,), _ = fit(detector, X)
    assert "Training of the classifier diverged" in message
    assert 1 <= len(detector.history_["classifier_retries"]) <= loop.MAX_RETRIES
    assert len(detector.history_["classifier_loss"]) == 120
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    classifier_rate(1e3)
    with pytest.raises(TrainingDivergedError, match=r"classifier_loss .* also after 3 retries"):
        detector.fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


@pytest.mark.parametrize("rate", [1e3, 1e10, 1e30])
def test_an_absurd_learning_rate_never_ends_in_nan(X, generator_rate, rate):
    generator_rate(rate)
    detector = G2DOutlierDetector(**G2D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            detector.fit(X)
        except TrainingDivergedError as error:
            assert "Lower max_steps" in str(error)  # noqa: PT017
            assert not hasattr(detector, "offset_")
            return
    assert np.isfinite(detector.score_samples(X)).all()


@pytest.mark.parametrize("n_steps", [1, 2, 51])
def test_divergence_in_the_very_last_step_never_ends_in_nan(X, n_steps, monkeypatch):
    """Weights that only the next loss would have shown to be beyond all use."""
    step = loop.Trainer.step

    def explode(self):
        losses = step(self)
        if self.n_steps == n_steps:
            with torch.no_grad():
                for network in self._networks.values():
                    for parameter in network.parameters():
                        parameter.mul_(1e37).add_(1e37)
        return losses

    monkeypatch.setattr(loop.Trainer, "step", explode)
    detector = AVIDDetector(**{**AVID, "max_steps": n_steps})
    with np.errstate(all="ignore"):
        try:
            detector.fit(X)
        except TrainingDivergedError:
            assert not hasattr(detector, "offset_")
            return
        assert np.isfinite(detector.score_samples(X)).all()


def test_a_classifier_of_ones_own_that_says_nan(X):
    class Broken(LogisticRegression):
        def predict_proba(self, X):
            return np.full((len(X), 2), np.nan)

    detector = G2DOutlierDetector(max_steps=2, classifier=Broken())
    with pytest.raises(TrainingDivergedError, match="check the classifier if it is your own"):
        detector.fit(X)
    assert not hasattr(detector, "offset_")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("cls", [AVIDDetector, G2DOutlierDetector])
def test_extreme_images_do_not_diverge(cls, scale):
    X = np.random.default_rng(0).normal(size=(12, 1, 16, 16))
    X[3, 0, 4, 5] = 1e6
    detector = cls(max_steps=3, n_estimators=1, random_state=0).fit(scale * X)
    assert np.isfinite(detector.score_samples(scale * X)).all()
    assert not any(name.endswith("retries") for name in detector.history_)


# Interrupts

SHORT = {
    "G2D": (G2DOutlierDetector, {"max_steps": 40, "n_estimators": 1, "random_state": 0}),
    "AVID": (AVIDDetector, {"max_steps": 60, "n_estimators": 2, "random_state": 0}),
    "AVID, warm": (AVIDDetector, {"max_steps": 60, "random_state": 0, "warm_start": True}),
    "G2D, warm": (G2DOutlierDetector, {"max_steps": 40, "random_state": 0, "warm_start": True}),
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
@pytest.mark.parametrize("case", SHORT)
def test_an_interrupt_at_any_time_leaves_the_estimator_as_it_was(X, case):
    cls, params = SHORT[case]
    start = time.monotonic()
    detector = cls(**params).fit(X)
    seconds = time.monotonic() - start
    scores = detector.score_samples(X)
    before = dict(vars(detector))
    n_threads = torch.get_num_threads()
    fresh = cls(**params)
    params_only = dict(vars(fresh))
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for share in np.random.default_rng().uniform(0.001, 0.8, size=5):
            for estimator in (detector, fresh):
                try:
                    signal.setitimer(signal.ITIMER_REAL, share * seconds)
                    estimator.fit(2 * X[:100])
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                    assert torch.get_num_threads() == n_threads
                    if estimator is fresh:
                        assert vars(fresh) == params_only
                        continue
                    assert vars(detector).keys() == before.keys()
                    assert all(vars(detector)[name] is value for name, value in before.items())
                    np.testing.assert_array_equal(detector.score_samples(X), scores)
                else:  # which was quicker than before
                    vars(estimator).clear()
                    vars(estimator).update(
                        before if estimator is detector else cls(**params).get_params()
                    )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert interrupted > 2
