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
