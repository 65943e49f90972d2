import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline

from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    NeighborProfile,
    OrientedGradients,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.utils.search import NeighborSearch


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(120, 5)) * [1, 10, 0.1, 1, 1] + 3


@pytest.fixture
def textures():
    """Gray images whose range is that of a byte."""
    images = np.random.default_rng(0).integers(0, 256, size=(40, 1, 12, 16)).astype(np.uint8)
    images[0, 0, 0, :2] = 0, 255
    return images


# SquashingScaler


def test_squashing_by_hand():
    scaler = SquashingScaler(bound=2.0).fit([[0.0], [2.0]])  # mean 1, deviation 1
    np.testing.assert_allclose(
        scaler.transform([[1.0], [3.0], [1e9]]).ravel(), [0, 2 / np.sqrt(2), 2]
    )


def test_an_infinite_bound_only_standardises(X):
    Z = SquashingScaler(bound=np.inf, range_weight=0.0).fit_transform(X)
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


def test_inverse_of_the_largest_numbers_stays_finite():
    X = 1e306 + 1e300 * np.random.default_rng(0).normal(size=(4, 20))
    largest = np.full((1, 20), np.finfo(float).max)
    scaler = SquashingScaler(bound=np.inf, range_weight=0.0).fit(X / 1e160)
    scaler.mean_, scaler.scale_ = scaler.mean_ * 1e160, scaler.scale_ * 1e160
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(largest)), largest)


def test_blocks_give_the_statistics_of_the_whole():
    X = np.random.default_rng(0).normal(5, 3, size=(20_000, 2)).astype(np.float32)
    scaler = SquashingScaler().fit(X)
    np.testing.assert_allclose(scaler.mean_, X.mean(axis=0, dtype=float))
    np.testing.assert_allclose(scaler.var_, X.var(axis=0, dtype=float))


def test_common_scale_is_one_factor(X):
    Z = SquashingScaler(np.inf, common_scale=True).fit_transform(X)
    assert Z.var(axis=0).mean() == pytest.approx(1)
    factors = pdist(X) / pdist(Z)
    np.testing.assert_allclose(factors, np.sqrt(X.var(axis=0).mean()))


def test_common_scale_of_constant_rows():
    scaler = SquashingScaler(common_scale=True).fit(np.ones((5, 3)))
    np.testing.assert_array_equal(scaler.transform(np.ones((1, 3))), 0)
    assert np.isfinite(scaler.transform(np.zeros((1, 3)))).all()


# GlobalMinMaxScaler


def test_one_range_for_all_columns():
    X = np.array([[0, 10], [5, 20]])
    scaler = GlobalMinMaxScaler().fit(X)
    np.testing.assert_array_equal(scaler.transform(X), [[-1, 0], [-0.5, 1]])
    np.testing.assert_array_equal(scaler.inverse_transform(scaler.transform(X)), X)
    assert (scaler.data_min_, scaler.data_max_) == (0, 20)


def test_the_range_of_constant_rows_and_of_all_numbers():
    constant = GlobalMinMaxScaler().fit(np.full((3, 2), 7.0))
    np.testing.assert_array_equal(constant.transform([[7.0, 8.0]]), [[0, 1]])
    largest = np.finfo(float).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Z = GlobalMinMaxScaler().fit_transform([[-largest, largest]])
        wild = constant.transform([[largest, -largest]])
    np.testing.assert_array_equal(Z, [[-1, 1]])
    np.testing.assert_array_equal(np.sign(wild), [[1, -1]])
    assert np.isfinite(np.square(wild.astype(np.float32))).all()


# ColumnMinMaxScaler


def test_a_range_for_each_column():
    X = np.array([[0, 10, 3], [5, 30, 3]])
    scaler = ColumnMinMaxScaler().fit(X)
    np.testing.assert_array_equal(scaler.transform(X), [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(scaler.inverse_transform(scaler.transform(X)), X)
    np.testing.assert_array_equal(scaler.transform([[10, 15, 5]]), [[3, -0.5, 2]])
    largest = np.finfo(float).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Z = ColumnMinMaxScaler().fit_transform([[-largest], [largest]])
    np.testing.assert_array_equal(Z, [[-1], [1]])


# NeighborProfile


def distances_in(profile, X):
    """What is standardised: the distances to neighbours, or to mixtures of them."""
    logs = profile.transform(X) * profile.scale_ + profile.center_
    return np.exp(logs) - profile.floor_


def likeness_to_a_copy(reference, X):
    """How much of a copy of its nearest reference row each row is, (n_samples, 1)."""

    def nearest(rows):
        distances = np.linalg.norm(rows[:, None] - reference, axis=2)
        return np.sort(distances, axis=1)[:, :2]

    limit = np.quantile(nearest(reference)[:, 1], 0.2)
    return np.maximum(1 - np.square(nearest(X)[:, :1] / limit), 0)


def brute_force(reference, X, k):
    """Sorted distances to the k nearest rows, of which a copy is left out, a near one in part."""
    distances = np.sort(np.linalg.norm(X[:, None] - reference, axis=2), axis=1)
    likeness = likeness_to_a_copy(reference, X)
    return likeness * distances[:, 1 : k + 1] + (1 - likeness) * distances[:, :k]


@pytest.mark.parametrize("n_features", [3, 5])
def test_profile_against_brute_force(n_features):
    rng = np.random.default_rng(0)
    reference, new = rng.normal(size=(80, n_features)), rng.normal(size=(30, n_features))
    near_copies = reference + 0.1 * rng.normal(size=reference.shape)
    assert 0.1 < likeness_to_a_copy(reference, near_copies).mean() < 0.98
    profile = NeighborProfile(n_neighbors=6).fit(reference)
    own = brute_force(reference, reference, 6)
    floor = 0.01 * np.median(own[:, -1]) + 1e-6
    logs = np.log(own + floor)
    for rows in (reference, new, near_copies):
        distances = brute_force(reference, rows, 6)
        expected = (np.log(distances + floor) - logs.mean(axis=0)) / logs.std(axis=0)
        np.testing.assert_allclose(profile.transform(rows), expected, atol=1e-9)


@pytest.mark.parametrize("measure", ["distance", "reconstruction"])
def test_a_rounded_copy_is_like_an_exact_one(X, measure):
    profile = NeighborProfile(8, measure).fit(X)
    exact = profile.transform(X)
    near = [profile.transform(X + offset) for offset in (1e-12, 1e-9, 1e-6, 1e-3)]
    for described, tolerance in zip(near, (1e-9, 1e-6, 1e-3, 0.1), strict=True):
        np.testing.assert_allclose(described, exact, atol=tolerance)


@pytest.mark.parametrize(
    ("n_references", "n_features"), [(30, 2), (40, 7), (1000, 7), (1001, 30), (200, 300)]
)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e140])
def test_the_search_finds_the_nearest_in_every_bit(n_references, n_features, scale):
    rng = np.random.default_rng(0)
    reference = np.round(rng.normal(size=(n_references, n_features)), 1)  # with ties
    rows = np.concatenate([reference[:20], rng.normal(size=(20, n_features)), 1e6 * reference[:3]])
    reference, rows = scale * reference, scale * rows
    search = NeighborSearch(reference)
    distances, indices = search.nearest(rows, 5)
    brute = np.linalg.norm(rows[:, None] - reference, axis=2)
    np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :5], rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(brute, indices, axis=1), distances, rtol=1e-12)
    for k in (1, 5, n_references // 2, n_references):
        expected = np.sort(brute, axis=1)[:, k - 1]
        np.testing.assert_allclose(search.distances_to(k, rows), expected, rtol=1e-12)
    alone = [search.nearest(row[None], 5) for row in rows]
    np.testing.assert_array_equal(np.concatenate([d for d, _ in alone]), distances)
    np.testing.assert_array_equal(np.concatenate([i for _, i in alone]), indices)


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
    np.testing.assert_allclose(distances_in(profile, X[[0, 3]]), [[0, 0], [4, 4]], atol=1e-12)


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
    np.testing.assert_allclose(distances_in(NeighborProfile(4).fit(X), X), found)


def brute_force_reconstruction(reference, X, n_neighbors):
    """Distance to the nearest mixture of neighbours, its ridge penalty of .3 included."""

    def distance(row, neighbors):
        mean = neighbors.mean(axis=0)
        span = neighbors - mean
        alpha = 0.3 * np.square(span).sum(axis=1).mean()
        weights = Ridge(alpha, fit_intercept=False).fit(span.T, row - mean).coef_
        rest = row - mean - weights @ span
        return np.sqrt(rest @ rest + alpha * weights @ weights)

    distances = np.empty((2, len(X), 3))
    for i, row in enumerate(X):
        neighbors = reference[np.argsort(np.linalg.norm(reference - row, axis=1))]
        for j, size in enumerate((n_neighbors // 4, n_neighbors // 2, n_neighbors)):
            for first in (0, 1):
                distances[first, i, j] = distance(row, neighbors[first : first + size])
    likeness = likeness_to_a_copy(reference, X)
    return likeness * distances[1] + (1 - likeness) * distances[0]


@pytest.mark.parametrize("n_features", [3, 12])
def test_reconstruction_against_ridge_regression(n_features):
    rng = np.random.default_rng(0)
    reference, new = rng.normal(size=(80, n_features)), rng.normal(size=(30, n_features))
    profile = NeighborProfile(8, "reconstruction").fit(reference)
    near_copies = reference[:30] + 0.2 * rng.normal(size=(30, n_features))
    own = brute_force_reconstruction(reference, reference, 8)
    floor = 0.01 * np.median(own[:, -1]) + 1e-6
    logs = np.log(own + floor)
    for rows in (reference, new, near_copies):
        distances = brute_force_reconstruction(reference, rows, 8)
        expected = (np.log(distances + floor) - logs.mean(axis=0)) / logs.std(axis=0)
        np.testing.assert_allclose(profile.transform(rows), expected, atol=1e-7)


def test_reconstruction_follows_the_surface_that_rows_lie_on():
    first, second, normal = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0].T
    lattice = np.array([i * first + j * second for i in range(12) for j in range(12)])
    corner = 5 * first + 6 * second
    points = np.stack([corner + (first + second) / 2, corner + np.sqrt(0.5) * normal])
    on, off = np.linalg.norm(points[:, None] - lattice, axis=2).min(axis=1)
    assert on == pytest.approx(off)  # equally far from the nearest row
    profile = NeighborProfile(20, "reconstruction").fit(lattice)
    on, off = distances_in(profile, points)
    assert (on < 0.2 * off).all()
    on, off = profile.transform(points)
    assert (on < 0.1).all()
    assert (off > 1).all()


def test_reconstruction_treats_reference_rows_like_new_ones(X):
    profile = NeighborProfile(8, "reconstruction")
    own = profile.fit_transform(X)
    np.testing.assert_allclose(profile.transform(X), own, atol=1e-9)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(own.std(axis=0), 1)
    np.testing.assert_allclose(profile.transform(X[7:8]), own[7:8], atol=1e-9)


def test_a_mixture_of_one_is_the_neighbor(X):
    near, mixed = (
        NeighborProfile(1, measure).fit_transform(X) for measure in ("distance", "reconstruction")
    )
    np.testing.assert_allclose(mixed, near, atol=1e-12)


def test_reconstruction_from_equal_rows_is_finite():
    profile = NeighborProfile(8, "reconstruction").fit(np.full((30, 4), 3.0))
    same, other = profile.transform([[3.0, 3, 3, 3], [4, 3, 3, 3]])
    assert np.isfinite([same, other]).all()
    assert (same < other).all()
    np.testing.assert_allclose(distances_in(profile, [[4.0, 3, 3, 3]]), 1)


def test_a_mixture_of_equal_neighbors_is_their_distance():
    rng = np.random.default_rng(0)
    rows, new = 100 * rng.normal(size=(3, 13)), 100 * rng.normal(size=(50, 13))
    profile = NeighborProfile(20, "reconstruction").fit(np.repeat(rows, 15, axis=0))
    nearest = np.linalg.norm(new[:, None] - rows, axis=2).min(axis=1)
    mixed = distances_in(profile, new)
    np.testing.assert_allclose(mixed[:, 0], nearest)  # of 5 rows, and the second one of 10
    np.testing.assert_allclose(mixed[:, 1], nearest)


# ResidualPCA


def test_the_last_component_is_the_distance_to_the_span(X):
    new = np.random.default_rng(1).normal(size=(20, 5)) * 5
    pca = ResidualPCA(2).fit(X)
    _, _, axes = np.linalg.svd(X - X.mean(axis=0))
    for rows in (X, new):
        transformed = pca.transform(rows)
        assert transformed.shape == (len(rows), 3)
        centred = rows - X.mean(axis=0)
        np.testing.assert_allclose(np.abs(transformed[:, :2]), np.abs(centred @ axes[:2].T))
        off = np.linalg.norm(centred - centred @ axes[:2].T @ axes[:2], axis=1)
        np.testing.assert_allclose(transformed[:, 2], off, rtol=1e-6, atol=1e-9)


def test_no_distance_grows_and_all_components_keep_it(X):
    rows = np.concatenate([X, 10 * np.random.default_rng(1).normal(size=(20, 5))])
    for n_components in (1, 3):
        shorter = pdist(ResidualPCA(n_components).fit(X).transform(rows))
        assert (shorter <= pdist(rows) * (1 + 1e-9)).all()
        assert (shorter < 0.99 * pdist(rows)).any()
    np.testing.assert_allclose(pdist(ResidualPCA(64).fit(X).transform(rows)), pdist(rows))


def test_components_invert_to_the_projection(X):
    full = ResidualPCA(5).fit(X)
    np.testing.assert_allclose(full.inverse_transform(full.transform(X)), X)
    pca = ResidualPCA(2).fit(X)
    projected = pca.inverse_transform(pca.transform(X))
    residual = np.linalg.norm(X - projected, axis=1)
    np.testing.assert_allclose(residual, pca.transform(X)[:, -1], rtol=1e-6)
    np.testing.assert_allclose(pca.transform(projected)[:, -1], 0, atol=1e-5)


def test_fewer_rows_than_components():
    X = np.random.default_rng(0).normal(size=(6, 40))
    pca = ResidualPCA(64).fit(X)
    assert pca.n_components_ == 5
    assert list(pca.get_feature_names_out()) == [f"residualpca{i}" for i in range(6)]
    np.testing.assert_allclose(pdist(pca.transform(X)), pdist(X))
    np.testing.assert_allclose(pca.transform(X)[:, -1], 0, atol=1e-6)
    assert pca.transform(X + np.random.default_rng(1).normal(size=(6, 40)))[:, -1].min() > 1


def test_components_of_constant_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pca = ResidualPCA().fit(np.ones((7, 4)))
        same, other = pca.transform([[1.0, 1, 1, 1], [1, 1, 1, 6]])
    np.testing.assert_array_equal(same, 0)
    assert np.linalg.norm(other) == pytest.approx(5)


def test_components_in_single_precision(X):
    single, double = (
        ResidualPCA(3).fit(X.astype(dtype)).transform(X.astype(dtype))
        for dtype in (np.float32, np.float64)
    )
    assert single.dtype == np.float64
    np.testing.assert_allclose(np.abs(single), np.abs(double), rtol=1e-4, atol=1e-4)


def test_components_of_a_row_do_not_depend_on_its_batch():
    X = np.random.default_rng(0).normal(size=(600, 30)).astype(np.float32)
    pca = ResidualPCA(10).fit(X)
    together = pca.transform(X)
    alone = np.concatenate([pca.transform(row[None]) for row in X])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(("n_rows", "n_components"), [(30, 29), (640, 80), (641, 64)])
def test_many_rows_let_components_be_left_out(n_rows, n_components):
    X = np.random.default_rng(0).normal(size=(n_rows, 80))
    pca = ResidualPCA().fit(X)
    assert pca.n_components_ == n_components
    assert pca.transform(X).shape == (n_rows, n_components + 1)


# OrientedGradients


def waves(angles, size=32, period=8):
    """Images of stripes, whose gradients have these angles."""
    down, across = np.mgrid[:size, :size] * 2 * np.pi / period
    angles = np.asarray(angles)[:, None, None, None]
    return np.sin(np.cos(angles) * across + np.sin(angles) * down)


def by_orientation(described, n_cells=4, n_orientations=12):
    """The first level as an array of (n, rows and columns of blocks, orientations)."""
    side = n_cells - 1
    level = described[:, : 4 * n_orientations * side**2]
    return level.reshape(-1, 4, n_orientations, side, side).sum(axis=1).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("params", "channels", "n_features"),
    [
        ({}, 1, 12 * 4 * (9 + 49) + 16),
        ({}, 3, 12 * 4 * (9 + 49) + 3 * 16),
        ({"n_cells": (2,), "n_orientations": 5, "layout_weight": 0}, 1, 20),
        ({"n_cells": [3, 2, 5], "n_orientations": 1}, 2, 4 * (4 + 1 + 16) + 2 * 16),
    ],
)
def test_shape_and_names_of_gradients(textures, params, channels, n_features):
    images = np.repeat(textures, channels, axis=1)
    gradients = OrientedGradients(**params).fit(images)
    described = gradients.transform(images)
    assert described.shape == (40, n_features)
    assert described.dtype == np.float32
    assert len(gradients.get_feature_names_out()) == n_features
    assert gradients.image_shape_ == (channels, 12, 16)
    assert gradients.n_features_in_ == channels * 12 * 16
    assert gradients.intensity_range_ == (0, 255)


def test_stripes_light_up_the_bin_of_their_gradient():
    images = waves(np.arange(12) * np.pi / 12)
    shares = by_orientation(OrientedGradients().fit_transform(images)).sum(axis=(1, 2))
    np.testing.assert_array_equal(shares.argmax(axis=1), np.arange(12))
    vertical_stripes, horizontal_stripes = shares[0], shares[6]
    assert vertical_stripes[6] < 0.05 * vertical_stripes[0]
    assert horizontal_stripes[0] < 0.05 * horizontal_stripes[6]


def test_strong_gradients_are_clipped_and_levels_at_most_of_length_1():
    described = OrientedGradients(layout_weight=0).fit_transform(waves([0, 1, 2]))
    for level, n_blocks in [(described[:, :432], 3), (described[:, 432:], 7)]:
        assert level.max() == pytest.approx(0.2 / n_blocks)
        assert level.min() >= 0
        lengths = np.linalg.norm(level, axis=1)
        assert lengths.min() > 0.5
        assert lengths.max() <= 1


@pytest.mark.parametrize("n_cells", [(4, 8), (8, 4)])
def test_maps_of_gradients_are_the_blocks_of_the_finest_cells(textures, n_cells):
    """Which a row holds as parts (blocks of four cells, orientations, rows, columns)."""
    gradients = OrientedGradients(n_cells=n_cells, layout_weight=0).fit(textures)
    maps, rows = gradients.feature_maps(textures), gradients.transform(textures)
    assert maps.shape == (len(textures), 48, 7, 7)
    own = rows[:, -(48 * 49) :] if n_cells[1] == 8 else rows[:, : 48 * 49]
    np.testing.assert_array_equal(maps.reshape(len(textures), -1), own)


def test_a_gradient_and_its_opposite_are_the_same(textures):
    gradients = OrientedGradients(layout_weight=0).fit(textures)
    np.testing.assert_allclose(
        gradients.transform(255 - textures), gradients.transform(textures), atol=1e-6
    )
    layout = OrientedGradients().fit(textures)
    assert np.abs(layout.transform(255 - textures) - layout.transform(textures)).max() > 0.02


@pytest.mark.parametrize(
    "rescale",
    [
        lambda x: x.astype(np.float64) / 255,
        lambda x: x.astype(np.float32) / 255,
        lambda x: x * 1e6 - 5,
        lambda x: x * 1e-30,
        lambda x: x / 2 + 300,
        lambda x: x.astype(np.int64),
    ],
    ids=["float64", "float32", "large", "small", "shifted", "int64"],
)
def test_units_of_intensity_do_not_matter(textures, rescale):
    plain, rescaled = OrientedGradients().fit(textures), OrientedGradients()
    rescaled.fit(rescale(textures))
    new = 60 + textures[::-1, :, ::-1] // 2
    np.testing.assert_allclose(
        rescaled.transform(rescale(new)), plain.transform(new), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 25)])
def test_the_description_of_an_image_does_not_depend_on_its_batch(shape):
    images = np.random.default_rng(0).normal(size=(300, *shape))
    gradients = OrientedGradients().fit(images)
    together = gradients.transform(images)
    alone = np.concatenate([gradients.transform(image[None]) for image in images])
    np.testing.assert_array_equal(alone, together)


def test_gray_images_in_colour_have_the_gradients_of_gray_ones(textures):
    gray = OrientedGradients().fit_transform(textures)
    colour = OrientedGradients().fit_transform(np.repeat(textures, 3, axis=1))
    np.testing.assert_array_equal(colour[:, :-48], gray[:, :-16])
    np.testing.assert_array_equal(colour[:, -48:], np.tile(gray[:, -16:], 3))


def test_the_steepest_channel_wins(textures):
    faint = [textures // 4, textures, 255 - textures // 2]
    colour = OrientedGradients().fit_transform(np.concatenate(faint, axis=1))
    gray = OrientedGradients().fit_transform(textures)
    np.testing.assert_allclose(colour[:, :-48], gray[:, :-16], atol=1e-6)


def test_every_pixel_has_its_own_steepest_channel():
    images = np.zeros((1, 3, 32, 32))
    vertical_stripes, horizontal_stripes = waves([0, np.pi / 2])[:, 0]
    images[0, 0, :, :16] = vertical_stripes[:, :16]
    images[0, 2, :, 16:] = horizontal_stripes[:, 16:]
    blocks = by_orientation(OrientedGradients().fit_transform(images))[0]
    np.testing.assert_array_equal(blocks[:, 0].argmax(axis=-1), 0)
    np.testing.assert_array_equal(blocks[:, 2].argmax(axis=-1), 6)


@pytest.mark.parametrize("shape", [(1, 8, 20), (3, 33, 17)])
def test_an_image_on_its_side_is_described_on_its_side(shape):
    images = np.random.default_rng(0).normal(size=(5, *shape))
    upright, lying = (
        OrientedGradients(n_cells=(4,)).fit_transform(x) for x in (images, images.swapaxes(2, 3))
    )
    channels, n_blocks = shape[0], 12 * 4 * 9
    assert upright.shape == (5, n_blocks + 16 * channels)
    blocks = upright[:, :n_blocks].reshape(5, 2, 2, 12, 3, 3)
    blocks = blocks[:, :, :, (6 - np.arange(12)) % 12].transpose(0, 2, 1, 3, 5, 4)
    np.testing.assert_allclose(lying[:, :n_blocks], blocks.reshape(5, -1), atol=1e-5)
    layout = upright[:, n_blocks:].reshape(5, channels, 4, 4).swapaxes(2, 3)
    np.testing.assert_allclose(lying[:, n_blocks:], layout.reshape(5, -1), atol=1e-6)


def test_layout_is_the_mean_intensity_of_regions():
    images = np.zeros((2, 1, 16, 16))
    images[0, 0, :8, 8:] = 1
    layout = OrientedGradients(layout_weight=4).fit_transform(images)[:, -16:].reshape(2, 4, 4)
    expected = np.zeros((4, 4))
    expected[:2, 2:] = 1
    np.testing.assert_allclose(layout[0], expected, atol=0.3)  # cells overlap
    np.testing.assert_allclose(layout[0].mean(), 0.25, atol=1e-6)
    np.testing.assert_array_equal(layout[1], 0)


def test_flat_images_and_their_noise_are_described_as_flat(textures):
    gradients = OrientedGradients(layout_weight=0).fit(textures)
    rng = np.random.default_rng(0)
    flat = np.full((20, 1, 12, 16), 100.0)
    np.testing.assert_array_equal(gradients.transform(flat), 0)
    noisy = gradients.transform(flat + 0.01 * rng.normal(size=flat.shape))
    lengths = np.linalg.norm(noisy, axis=1)
    assert lengths.max() < 0.05 * np.linalg.norm(gradients.transform(textures), axis=1).min()
    assert lengths.min() > 0
    faint = gradients.transform(flat[:1] + 0.1 * textures)  # but contrast is no matter
    np.testing.assert_allclose(faint, gradients.transform(textures), atol=0.01)


def test_gradients_of_nothing_but_flat_images():
    described = OrientedGradients().fit_transform(np.full((3, 1, 8, 8), 7, dtype=np.uint8))
    np.testing.assert_array_equal(described, 0)


def test_rows_of_pixels_are_images(textures):
    expected = OrientedGradients().fit_transform(textures)
    rows = textures.reshape(40, -1)
    gradients = OrientedGradients((1, 12, 16)).fit(rows)
    np.testing.assert_array_equal(gradients.transform(rows), expected)
    np.testing.assert_array_equal(gradients.transform(textures), expected)
    as_images = OrientedGradients().fit(textures)
    np.testing.assert_array_equal(as_images.transform(rows), expected)


def test_neighbors_judge_better_by_gradients_than_by_pixels():
    digits = load_digits()
    y = np.where(digits.target == 3, 1, -1)[:600]
    accuracies, aucs = [], []
    for features, X in [
        ("passthrough", digits.data),
        (OrientedGradients(), digits.images[:, None]),
    ]:
        search = make_pipeline(features, NearestNeighbors(n_neighbors=1)).fit(X[:400])
        _, nearest = search[-1].kneighbors(search[:-1].transform(X[400:600]))
        accuracies.append(np.mean(digits.target[nearest[:, 0]] == digits.target[400:600]))
        factor = make_pipeline(features, LocalOutlierFactor(novelty=True))
        scores = factor.fit(X[:400][y[:400] == 1]).score_samples(X[400:600])
        aucs.append(outlier_roc_auc_score(y[400:], scores))
    assert accuracies[1] > accuracies[0] > 0.8
    assert aucs[1] > aucs[0] > 0.9


@pytest.mark.parametrize(
    ("params", "bad", "message"),
    [
        ({}, lambda x: x[:, :, :7], 'at least 8 x 8 pixels, got 7 x 16.*features="passthrough"'),
        ({}, lambda x: x.reshape(40, -1), r"X has shape \(40, 192\).*image_shape=\(channels"),
        ({}, lambda x: np.where(x == 255, np.nan, x), "contains NaN"),
        ({}, lambda x: x[:, 0], r"X\[:, np.newaxis\]"),
        ({}, lambda x: np.moveaxis(x, 1, -1), "channels last"),
        ({"n_cells": (1, 4)}, lambda x: x, r"between 2 and .* 12, got \(1, 4\)"),
        ({"n_cells": (4, 13)}, lambda x: x, r"between 2 and .* 12, got \(4, 13\)"),
        ({"image_shape": (1, 16, 12)}, lambda x: x, r"was given image_shape=\(1, 16, 12\)"),
        ({"image_shape": (12, 16)}, lambda x: x, r"three positive integers .* got \(12, 16\)"),
    ],
)
def test_gradients_refuse(textures, params, bad, message):
    with pytest.raises(ValueError, match=message):
        OrientedGradients(**params).fit(bad(textures))


def test_gradients_refuse_images_unlike_those_of_fit(textures):
    gradients = OrientedGradients().fit(textures)
    with pytest.raises(ValueError, match=r"image shape \(1, 12, 15\), but .* fitted on \(1, 12"):
        gradients.transform(textures[..., 1:])
    with pytest.raises(NotFittedError):
        OrientedGradients().transform(textures)


def test_gradients_are_cloned_without_what_they_learned(textures):
    gradients = OrientedGradients(n_cells=(3, 5), n_orientations=7, layout_weight=2).fit(textures)
    copied = clone(gradients)
    assert copied.get_params() == gradients.get_params()
    assert set(vars(copied)) == set(gradients.get_params())
    np.testing.assert_array_equal(copied.fit_transform(textures), gradients.transform(textures))


# All of them


@pytest.mark.parametrize(
    ("transformer", "name"),
    [
        (SquashingScaler(bound=0), "bound"),
        (SquashingScaler(bound=np.nan), "bound"),
        (SquashingScaler(range_weight=1.5), "range_weight"),
        (SquashingScaler(common_scale="yes"), "common_scale"),
        (NeighborProfile(0), "n_neighbors"),
        (NeighborProfile(2.5), "n_neighbors"),
        (NeighborProfile(measure="length"), "measure"),
        (ResidualPCA(0), "n_components"),
        (ResidualPCA(2.5), "n_components"),
        (ResidualPCA("all"), "n_components"),
        (OrientedGradients(n_orientations=0), "n_orientations"),
        (OrientedGradients(n_cells=4), "n_cells"),
        (OrientedGradients(layout_weight=-1), "layout_weight"),
        (OrientedGradients(layout_weight=np.inf), "layout_weight"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(transformer, name, X, textures):
    given = textures if isinstance(transformer, OrientedGradients) else X
    with pytest.raises(ValueError, match=f"The '{name}' parameter of {type(transformer).__name__}"):
        transformer.fit(given)


@pytest.mark.parametrize(
    ("transformer", "changes"),
    [
        (SquashingScaler(), {"bound": 1.0, "range_weight": 1.0, "common_scale": True}),
        (NeighborProfile(8, "reconstruction"), {"n_neighbors": 3, "measure": "distance"}),
        (ResidualPCA(3), {"n_components": 1}),
        (OrientedGradients(), {"n_cells": (3,), "n_orientations": 2, "layout_weight": 0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters_set_after_fit_wait_for_the_next_one(transformer, changes, X, textures):
    given = textures if isinstance(transformer, OrientedGradients) else X
    transformer = clone(transformer).fit(given)
    before = transformer.transform(given)
    transformer.set_params(**changes)
    np.testing.assert_array_equal(transformer.transform(given), before)
    transformer.fit(given)
    assert not np.array_equal(transformer.transform(given), before)
