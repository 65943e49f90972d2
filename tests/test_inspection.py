import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.utils.validation import validate_data

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.features import NeighborProfile
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.inspection import column_contributions
from sklearn_g2d.utils.columns import format_label, trace_columns

pd = pytest.importorskip("pandas")


def make_detector(**changes):
    """A detector that is fitted quickly: explanations do not depend on its classifier."""
    classifier = NetworkClassifier(max_steps=2, n_members=2)
    changes = {"classifier": classifier, "support_fraction": 1.0, "random_state": 0} | changes
    return G2DOutlierDetector(**changes)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(120, 6)) * [1, 2, 3, 1, 10, 0.1] + 5


@pytest.fixture(scope="module")
def detector(rows):
    return make_detector(n_neighbors=7).fit(rows)


@pytest.fixture(scope="module")
def table():
    """Columns whose names and categories look like each other's, and a gap."""
    rng = np.random.default_rng(0)
    n = 80
    table = pd.DataFrame(
        {
            "a": rng.choice(["b", "c_d", "b_x"], n),
            "a_b": rng.choice(["x", "y"], n),
            "size": rng.normal(size=n),
            "weight": rng.normal(size=n),
            "unused": rng.normal(size=n),
        }
    )
    table.loc[[3, 9], "size"] = np.nan
    return table


def fit_encoder(table, output="default", **settings):
    """A Pipeline that drops a column, and makes several of others."""
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    encoder = ColumnTransformer(
        [
            ("numbers", numbers, ["weight", "size"]),
            ("texts", OneHotEncoder(sparse_output=False), ["a_b", "a"]),
            ("gone", "drop", ["unused"]),
        ],
        **settings,
    )
    encoder.set_output(transform=output)
    return make_pipeline(encoder, make_detector()).fit(table)


def distances_to_neighbors(detector, X, leave_out_first):
    """Mean squared distances by brute force, and these of single columns."""
    points = detector.scaler_.transform(X)
    squares = np.square(points[:, None] - detector.profile_.reference_)
    k = detector.n_neighbors
    order = np.argsort(squares.sum(axis=2), axis=1)[:, leave_out_first : k + leave_out_first]
    return np.take_along_axis(squares, order[:, :, None], axis=1).mean(axis=1)


# Detectors


def test_new_rows_are_explained_by_their_squared_distance(detector, rows):
    X = rows[:30] + np.random.default_rng(1).choice([-1, 1], (30, 6)) * [3, 6, 9, 3, 30, 0.3]
    by_column = distances_to_neighbors(detector, X, leave_out_first=0)
    np.testing.assert_allclose(detector.explain(X), by_column, rtol=1e-9)
    points = detector.scaler_.transform(X)
    nearest, _ = (
        NearestNeighbors(n_neighbors=7).fit(detector.profile_.reference_).kneighbors(points)
    )
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), np.square(nearest).mean(axis=1))


def test_training_rows_are_not_their_own_neighbors(detector, rows):
    by_column = distances_to_neighbors(detector, rows, leave_out_first=1)
    np.testing.assert_allclose(detector.explain(rows), by_column, rtol=1e-9)
    nearly = detector.explain(rows * (1 + 1e-7))
    np.testing.assert_allclose(nearly, by_column, rtol=1e-4)


def test_a_near_copy_counts_in_part():
    reference = np.array([[0.0], [1.0], [2.0], [4.0]])
    profile = NeighborProfile(n_neighbors=2).fit(reference)
    profile.copy_distance_ = 1.0
    # At half the distance of copies the nearest row weighs 1 / 4, and the third 3 / 4.
    expected = (0.5**2 / 4 + 1.5**2 * 0 + 2.5**2 + 3.5**2 * 3 / 4) / 2
    np.testing.assert_allclose(profile._by_column(np.array([[4.5]])), [[expected]])


def test_an_odd_cell_has_most_of_the_distance(detector, rows):
    X = np.repeat(rows.mean(axis=0)[None], 6, axis=0) + 9 * np.diag(rows.std(axis=0))
    parts = detector.explain(X)
    np.testing.assert_array_equal(parts.argmax(axis=1), np.arange(6))
    assert (np.diag(parts) > 0.8 * parts.sum(axis=1)).all()
    assert (parts >= 0).all()


def test_a_row_alone_is_explained_as_among_others(detector, rows):
    X = np.tile(rows * 1.1, (80, 1))  # more than one batch
    parts = detector.explain(X)
    assert parts.shape == X.shape
    np.testing.assert_array_equal(parts[-len(rows) :], parts[: len(rows)])
    np.testing.assert_array_equal(detector.explain(X[5:6]), parts[5:6])


def test_features_that_choose_columns_are_followed(rows):
    chosen = make_pipeline(VarianceThreshold(3.0), MinMaxScaler())
    detector = make_detector(features=chosen).fit(rows)
    parts = detector.explain(rows)
    np.testing.assert_array_equal(parts.any(axis=0), rows.var(axis=0) > 3)
    same = make_detector(features=MinMaxScaler()).fit(rows[:, parts.any(axis=0)])
    np.testing.assert_allclose(
        parts[:, parts.any(axis=0)], same.explain(rows[:, parts.any(axis=0)])
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_neighbors": 0}, "sees the row itself. Fit with n_neighbors=20"),
        ({"measure": "reconstruction"}, 'mixtures of rows. Fit with .* measure="distance"'),
        ({"features": PCA(2)}, "PCA mixes them. Put it before the detector, in a Pipeline"),
        ({"scaler": PCA(2)}, "PCA mixes them"),
        ({"features": np.exp2}, "ufunc does not say which .* Give it this method"),
        ({"image_shape": (1, 2, 3), "features": "passthrough"}, "images.*PatchDetector or an AVID"),
    ],
)
def test_detectors_without_an_explanation_name_the_remedy(rows, changes, message):
    detector = make_detector(**changes).fit(rows)
    with pytest.raises(ValueError, match=message):
        detector.explain(rows)


def test_explain_checks_its_input(detector, rows):
    with pytest.raises(NotFittedError):
        make_detector().explain(rows)
    with pytest.raises(ValueError, match=r"has 5 features, but .* is expecting 6"):
        detector.explain(rows[:, :5])


# Pipelines


def test_a_detector_alone_is_explained_by_its_columns(rows):
    table = pd.DataFrame(rows, columns=list("abcdef"))
    fitted = make_detector().fit(table)
    why = column_contributions(fitted, table)
    assert list(why.names) == list("abcdef")
    np.testing.assert_array_equal(why.contributions, fitted.explain(table))
    assert list(column_contributions(make_detector().fit(rows), rows).names) == [
        f"x{column}" for column in range(6)
    ]


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("output", ["default", "pandas"])
def test_columns_made_of_one_count_for_it(table, verbose, output):
    if output == "pandas":  # in which scikit-learn itself refuses names that are equal
        table = table.replace("b_x", "e")
    pipeline = fit_encoder(table, output, verbose_feature_names_out=verbose)
    why = column_contributions(pipeline, table)
    assert list(why.names) == ["a", "a_b", "size", "weight"]
    # weight, size, the indicator of its gaps; two of a_b; three of a
    parts = pipeline[-1].explain(pipeline[0].transform(table))
    a_b, a, size = parts[:, 3:5].sum(axis=1), parts[:, 5:8].sum(axis=1), parts[:, 1:3].sum(axis=1)
    np.testing.assert_allclose(why.contributions, np.c_[a, a_b, size, parts[:, 0]])
    assert why.contributions.any(axis=0).all()


def test_columns_in_another_order_keep_their_names(table):
    pipeline = Pipeline([("nothing", "passthrough"), ("rest", fit_encoder(table))]).fit(table)
    expected = column_contributions(pipeline, table)
    given = column_contributions(pipeline, table[table.columns[::-1]])
    np.testing.assert_array_equal(given.names, expected.names)
    np.testing.assert_array_equal(given.contributions, expected.contributions)


def test_an_odd_category_is_found(table):
    pipeline = fit_encoder(table.assign(a=["b"] * 78 + ["c_d"] * 2))
    odd = table.iloc[[0]].assign(a="c_d")
    why = column_contributions(pipeline, odd)
    assert why.names[why.contributions[0].argmax()] == "a"


def test_columns_that_are_mixed_have_names_of_their_own(rows):
    table = pd.DataFrame(rows, columns=list("abcdef"))
    mixed = ColumnTransformer(
        [("left", PCA(1), ["a", "b"]), ("right", PCA(1), ["c", "d"])], remainder="passthrough"
    )
    pipeline = make_pipeline(
        StandardScaler().set_output(transform="pandas"), mixed, make_detector()
    )
    pipeline.fit(table)
    why = column_contributions(pipeline, table)
    assert list(why.names) == ["e", "f", "left__pca0", "right__pca0"]
    parts = pipeline[-1].explain(pipeline[:-1].transform(table))
    np.testing.assert_array_equal(why.contributions, parts[:, [2, 3, 0, 1]])


class OwnTransformer(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.asarray(X)


@pytest.mark.parametrize("own", [OwnTransformer(), FunctionTransformer(np.abs)])
def test_a_transformer_without_names_is_an_error(rows, own):
    pipeline = make_pipeline(own, make_detector()).fit(rows)
    with pytest.raises(ValueError, match=f"{type(own).__name__} does not say .*one-to-one"):
        column_contributions(pipeline, rows)


@pytest.mark.parametrize("other", [AVIDDetector(), IsolationForest()])
def test_another_detector_is_an_error(rows, other, monkeypatch):
    monkeypatch.setattr(type(other), "__sklearn_is_fitted__", lambda self: True, raising=False)
    with pytest.raises(TypeError, match=f"got {type(other).__name__}. An AVIDDetector explains"):
        column_contributions(make_pipeline(StandardScaler(), other), rows)


def test_a_pipeline_has_to_be_fitted(rows):
    with pytest.raises(NotFittedError):
        column_contributions(make_pipeline(StandardScaler(), make_detector()), rows)


def test_rows_are_checked_by_the_pipeline(rows):
    pipeline = make_pipeline(StandardScaler(), make_detector()).fit(rows)
    with pytest.raises(ValueError, match="X has 5 features, but StandardScaler"):
        column_contributions(pipeline, rows[:, :5])
    with pytest.raises(ValueError, match="Expected 2D array"):
        column_contributions(pipeline, rows[0])


# Transformers


class KnowsItsNames(OwnTransformer):
    def fit(self, X, y=None):
        validate_data(self, X, dtype=None)
        return self

    def get_feature_names_out(self, input_features=None):
        return self.feature_names_in_


TEXTS = ["a", "a_b"]
NUMBERS = ["weight", "unused"]


@pytest.mark.parametrize(
    ("transformer", "columns", "labels"),
    [
        (OneHotEncoder(drop="first"), TEXTS, [0, 0, 1]),
        (OneHotEncoder(min_frequency=0.4), TEXTS, [0, 1, 1]),
        (OrdinalEncoder(), TEXTS, [0, 1]),
        (KBinsDiscretizer(2, quantile_method="averaged_inverted_cdf"), NUMBERS, [0, 0, 1, 1]),
        (PolynomialFeatures(2), NUMBERS, ["1", 0, 1, 0, "weight unused", 1]),
        (
            make_pipeline(MinMaxScaler(), PolynomialFeatures(interaction_only=True)),
            NUMBERS,
            ["1", 0, 1, "weight unused"],
        ),
        (PCA(), ["weight"], [0]),
        (KnowsItsNames(), TEXTS, [0, 1]),
        (SelectKBest(lambda X, y: np.arange(X.shape[1]), k=1), NUMBERS, [1]),
        (FunctionTransformer(feature_names_out="one-to-one"), TEXTS, [0, 1]),
        (CountVectorizer(), "a", [0, 0]),
        (make_union(PCA(1), StandardScaler()), NUMBERS, ["pca__pca0", 0, 1]),
        (FeatureUnion([("x", "passthrough"), ("y", "drop")]), NUMBERS, [0, 1]),
        (make_pipeline(PCA(), PCA(1)), NUMBERS, ["pca0"]),
        (make_pipeline(None, "passthrough", StandardScaler()), NUMBERS, [0, 1]),
        (
            ColumnTransformer(
                [
                    ("none", StandardScaler(), []),
                    ("mask", OneHotEncoder(), [False, True, False]),
                    ("kind", MinMaxScaler(), make_column_selector(dtype_include=float)),
                    ("slice", "passthrough", slice(1, None)),
                ],
                remainder=OneHotEncoder(),
            ),
            ["weight", "a", "a_b"],
            [1, 1, 1, 0, 1, 2],
        ),
    ],
)
def test_labels_follow_columns(table, transformer, columns, labels):
    X = table[columns]
    transformer.fit(X, np.zeros(len(X)))
    names = [columns] if isinstance(columns, str) else columns
    followed = trace_columns(transformer, range(len(names)))
    assert [format_label(f, names) if isinstance(f, str) else f for f in followed] == labels
    assert transformer.transform(X).shape[1] == len(labels)
