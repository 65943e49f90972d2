"""Training that diverges is taken up again; a fit that fails or is interrupted changes nothing."""

import signal
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.features import SquashingScaler
from sklearn_g2d.g2d import WassersteinGAN

MAX_RETRIES = 3


def avid(rate, **params):
    """An inpainter that diverges at rates of 2 and more, and does not at a fraction of them."""
    training = CellInpainting(
        max_steps=60, optimizer="sgd", schedule="constant", learning_rates=(rate, 1e-2)
    )
    return AVIDDetector(training=training, random_state=0, **params)


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(120, 5))


def g2d(**params):
    """The published method on rows without bounds, for what is bounded hardly diverges."""
    unbounded = {
        "scaler": SquashingScaler(bound=np.inf, range_weight=0.0),
        "generator__generator_network": "perceptron",
        "generator__hidden_layer_sizes": (64, 64),
    }
    steps = {"generator__max_steps": 60, "classifier__max_steps": 60, "random_state": 0}
    return G2DOutlierDetector.from_paper(**unbounded | steps | params)


def fit(detector, X):
    with pytest.warns(ConvergenceWarning) as caught:
        detector.fit(X)
    return [str(warning.message) for warning in caught], caught


def test_a_retry_is_warned_of_and_recorded(X):
    detector = avid(4.0)
    (message,), (caught,) = fit(detector, X)
    assert "Training of the networks diverged" in message
    assert "Lower the learning_rates of training" in message
    assert caught.filename == __file__
    retries = detector.history_["networks_retries"]
    assert 1 <= len(retries) <= MAX_RETRIES
    assert f"after steps {', '.join(map(str, retries))})" in message
    assert {len(detector.history_[k]) for k in ("reconstruction_loss", "detector_loss")} == {60}
    assert all(np.isfinite(values).all() for values in detector.history_.values())
    near, far = detector.score_samples(X), detector.score_samples(100 * X)
    assert np.isfinite([near, far]).all()
    assert far.mean() < near.mean()


def test_a_lower_rate_from_the_start_gives_the_same_as_retries_from_the_start(X):
    """Nothing of the attempts that failed is left."""
    retried = avid(4.0)
    fit(retried, X)
    retries = retried.history_["networks_retries"]
    assert set(retries) == {0}
    rates = [rate * 0.5 ** len(retries) for rate in retried.training.learning_rates]
    direct = avid(4.0).set_params(training__learning_rates=rates).fit(X)
    np.testing.assert_array_equal(direct.score_samples(X), retried.score_samples(X))
    assert "networks_retries" not in direct.history_


def test_a_warm_start_counts_the_steps_of_retries_on(X):
    detector = avid(4.0, warm_start=True)
    fit(detector, X)
    first = detector.history_["networks_retries"]
    fit(detector.set_params(training__learning_rates=(6.0, 1e-2)), X)
    both = detector.history_["networks_retries"]
    np.testing.assert_array_equal(both[: len(first)], first)
    assert len(both) > len(first)
    assert (both[len(first) :] >= 60).all()
    assert len(detector.history_["detector_loss"]) == detector.n_iter_ == 120


def test_a_classifier_that_diverges(X):
    detector = g2d(classifier__max_steps=120, classifier__learning_rate=1.0)
    (message,), _ = fit(detector, X)
    assert "Training of the classifier diverged" in message
    assert 1 <= len(detector.history_["classifier_retries"]) <= MAX_RETRIES
    assert len(detector.history_["classifier_loss"]) == 120
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    with pytest.raises(TrainingDivergedError, match=r"classifier_loss .* also after 3 retries"):
        detector.set_params(classifier__learning_rate=1e3).fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


@pytest.mark.parametrize("rate", [1e3, 1e10, 1e30])
def test_an_absurd_learning_rate_never_ends_in_nan(X, rate):
    detector = g2d(generator__learning_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            detector.fit(X)
        except TrainingDivergedError as error:
            assert "Lower " in str(error)  # noqa: PT017
            assert not hasattr(detector, "offset_")
            return
    assert np.isfinite(detector.score_samples(X)).all()


@pytest.mark.parametrize("n_steps", [1, 2, 51])
def test_divergence_in_the_very_last_step_never_ends_in_nan(X, n_steps):
    """Weights that only the next loss would have shown to be useless."""

    def explode(fraction):
        return 1e37 if fraction >= (n_steps - 1) / n_steps else 1.0

    for part in ("generator", "classifier"):
        changes = {f"{part}__max_steps": n_steps, f"{part}__schedule": explode}
        detector = g2d(**changes)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                detector.fit(X)
            except TrainingDivergedError:
                assert not hasattr(detector, "offset_")
            else:
                assert np.isfinite(detector.score_samples(X)).all()


def test_a_classifier_of_ones_own_that_returns_nan(X):
    class Broken(LogisticRegression):
        def predict_proba(self, X):
            return np.full((len(X), 2), np.nan)

    detector = G2DOutlierDetector(classifier=Broken())
    with pytest.raises(TrainingDivergedError, match="check the classifier if it is your own"):
        detector.fit(X)
    assert not hasattr(detector, "offset_")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    "detector",
    [
        AVIDDetector(random_state=0).set_params(training__max_steps=3),
        G2DOutlierDetector(random_state=0),
        G2DOutlierDetector(generator=WassersteinGAN(max_steps=3, n_members=1), random_state=0),
    ],
    ids=["AVID", "G2D", "G2D trained"],
)
def test_extreme_images_do_not_diverge(detector, scale):
    X = np.random.default_rng(0).normal(size=(12, 1, 16, 16))
    X[3, 0, 4, 5] = 1e6
    detector.fit(scale * X)
    assert np.isfinite(detector.score_samples(scale * X)).all()
    assert not any(name.endswith("retries") for name in detector.history_)


# Interrupts


def trained_g2d(**params):
    generator = WassersteinGAN(max_steps=40)
    return G2DOutlierDetector(generator=generator, random_state=0, **params)


def trained_avid(**params):
    return AVIDDetector(training=CellInpainting(max_steps=60), random_state=0, **params)


SHORT = {
    "G2D": lambda: G2DOutlierDetector(random_state=0),
    "G2D, trained": trained_g2d,
    "G2D, warm": lambda: trained_g2d(warm_start=True),
    "AVID": trained_avid,
    "AVID, warm": lambda: trained_avid(warm_start=True),
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
@pytest.mark.parametrize("case", SHORT)
def test_an_interrupt_at_any_time_leaves_the_estimator_as_it_was(X, case):
    make = SHORT[case]
    detector = make().fit(X)
    start = time.monotonic()
    make().fit(2 * X[:100])  # as what is interrupted, now that everything is imported
    seconds = time.monotonic() - start
    scores = detector.score_samples(X)
    before = dict(vars(detector))
    n_threads = torch.get_num_threads()
    fresh = make()
    params_only = dict(vars(fresh))
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for fraction in np.random.default_rng().uniform(0.001, 0.8, size=5):
            for estimator in (detector, fresh):
                try:
                    signal.setitimer(signal.ITIMER_REAL, fraction * seconds)
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
                else:  # it was quicker than before
                    vars(estimator).clear()
                    vars(estimator).update(before if estimator is detector else params_only)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert interrupted > 2
