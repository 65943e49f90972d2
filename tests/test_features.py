import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from sklearn_g2d.features import NeighborProfile, SquashingScaler


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(120, 5)) * [1, 10, 0.1, 1, 1] + 3


def test_squashing_by_hand():
    scaler = SquashingScaler(bound=2.0).fit([[0.0], [2.0]])  # mean 1, deviation 1
    np.testing.assert_allclose(
        scaler.transform([[1.0], [3.0], [1e9]]).ravel(), [0, 2 / np.sqrt(2), 2]
    )


def test_an_infinite_bound_only_standardises(X):
    Z = SquashingScaler(bound=np.inf).fit_transform(X)
    np.testing.assert_allclose(Z, (X - X.mean(axis=0)) / X.std(axis=0))


def test_range_weight_tempers_a_rare_flag():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.uniform(size=1000), np.arange(1000) < 5])
    standardised, mixed, ranged = (
        SquashingScaler(np.inf, range_weight=weight).fit_transform(X) for weight in (0, 0.25, 1)
    )
    assert standardised[:, 1].max() > mixed[:, 1].max() > ranged[:, 1].max()
    np.testing.assert_allclose(np.ptp(ranged, axis=0), np.ptp(ranged[:, 0]), rtol=1e-12)
    for Z in (mixed, ranged):  # one common factor makes the mean square 1
        assert np.mean(np.square(Z)) == pytest.approx(1)


@pytest.mark.parametrize("bound", [3.0, 8.0, np.inf])
def test_inverse(X, bound):
    scaler = SquashingScaler(bound=bound).fit(X)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(X)), X)
    assert np.isfinite(scaler.inverse_transform(np.full((1, 5), min(bound, 1e9)))).all()


def test_blocks_give_the_statistics_of_the_whole():
    X = np.random.default_rng(0).normal(5, 3, size=(20_000, 2)).astype(np.float32)
    scaler = SquashingScaler().fit(X)
    np.testing.assert_allclose(scaler.scaler_.mean_, X.mean(axis=0, dtype=float))
    np.testing.assert_allclose(scaler.scaler_.var_, X.var(axis=0, dtype=float))


def brute_force(reference, X, k):
    """Sorted distances to the k nearest rows that differ from the row itself."""
    distances = np.sort(np.linalg.norm(X[:, None] - reference, axis=2), axis=1)
    return np.array([row[row > 0][:k] for row in distances])


@pytest.mark.parametrize("n_features", [3, 5])
def test_profile_against_brute_force(n_features):
    rng = np.random.default_rng(0)
    reference, new = rng.normal(size=(80, n_features)), rng.normal(size=(30, n_features))
    profile = NeighborProfile(n_neighbors=6).fit(reference)
    own, other = brute_force(reference, reference, 6), brute_force(reference, new, 6)
    floor = 0.01 * np.median(own[:, -1]) + 1e-6
    logs = np.log(own + floor)
    for rows, distances in [(reference, own), (new, other)]:
        expected = (np.log(distances + floor) - logs.mean(axis=0)) / logs.std(axis=0)
        np.testing.assert_allclose(profile.transform(rows), expected, atol=1e-9)


def test_reference_rows_are_treated_like_new_ones(X):
    profile = NeighborProfile(5).fit(X)
    np.testing.assert_allclose(profile.transform(X).mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(profile.transform(X).std(axis=0), 1)


def test_only_one_equal_row_is_left_out():
    X = np.array([[0.0, 0], [0, 0], [0, 0], [4, 0], [0, 3]])
    profile = NeighborProfile(2).fit(X)
    at_duplicates, far = profile.transform([[0.0, 0], [40, 40]])
    assert (at_duplicates < far).all()
    # Of three rows equal to the first one, two remain: both distances are zero.
    np.testing.assert_allclose(profile._measure(X[:1]), [[0, 0]])
    np.testing.assert_allclose(profile._measure(X[3:4]), [[4, 4]])


def test_short_references_shorten_the_profile():
    profile = NeighborProfile(20).fit(np.arange(8.0).reshape(4, 2))
    assert profile.n_neighbors_ == 3
    assert profile.transform([[0.0, 0.0]]).shape == (1, 3)


def test_the_search_is_exact_where_rows_are_far_from_the_origin():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 6))
    near = NeighborProfile(4).fit(X)
    far = NeighborProfile(4).fit(X + 1000)
    np.testing.assert_allclose(far.transform(X + 1000), near.transform(X), atol=1e-5)


def test_agrees_with_scikit_learns_neighbors(X):
    found, _ = NearestNeighbors(n_neighbors=4).fit(X).kneighbors()
    np.testing.assert_allclose(NeighborProfile(4).fit(X)._measure(X), found)


def test_bad_length(X):
    with pytest.raises(ValueError, match="n_neighbors must be at least 1, got 0"):
        NeighborProfile(0).fit(X)
