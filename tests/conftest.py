import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine


@pytest.fixture(scope="session")
def blobs():
    """Two normal clusters for training; new normal rows and scattered outliers to test."""
    rng = np.random.default_rng(0)
    centers = np.array([[3.0, 3.0, 0.0], [-3.0, -3.0, 0.0]])

    def normal(n):
        return centers[rng.integers(2, size=n)] + 0.5 * rng.normal(size=(n, 3))

    X_test = np.concatenate([normal(200), rng.uniform(-8, 8, size=(100, 3))])
    return normal(300), X_test, np.repeat([1, -1], [200, 100])


def _one_class(X, is_normal, seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(is_normal))
    half = len(normal) // 2
    test = np.concatenate([normal[half:], np.flatnonzero(~is_normal)])
    return X[normal[:half]], X[test], np.where(is_normal[test], 1, -1)


@pytest.fixture(scope="session")
def real_tables():
    """Real tables that scikit-learn ships: training rows, test rows, test labels."""
    digits, digits_y = load_digits(return_X_y=True)
    wine, wine_y = load_wine(return_X_y=True)
    return {
        "digits": _one_class(digits, digits_y != 9),
        "wine": _one_class(wine, wine_y == 1),
    }


@pytest.fixture(scope="session")
def make_stripes():
    """Makes upright stripes in noise, of which the last `n_odd` images have a patch turned."""

    def make(n, n_odd=0, *, seed, size=32, patch=10):
        rng = np.random.default_rng(seed)
        wave = 2 * np.pi * np.arange(size) / 8
        upright, turned = np.sin(wave + rng.uniform(0, 2 * np.pi, size=(2, n, 1, 1, 1)))
        X, turned = np.broadcast_arrays(upright, turned.swapaxes(2, 3))
        masks = np.zeros((n, size, size), dtype=bool)
        for mask in masks[n - n_odd :]:
            top, left = rng.integers(size - patch + 1, size=2)
            mask[top : top + patch, left : left + patch] = True
        X = np.where(masks[:, None], turned, X)
        return X + 0.3 * rng.normal(size=X.shape), masks

    return make
