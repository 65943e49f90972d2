"""Cross-validation of detectors that learn from normal rows only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, check_cv
from sklearn.utils import check_consistent_length

from sklearn_g2d.metrics import PosLabel, _is_outlier

__all__ = ["NormalOnlySplit"]


class NormalOnlySplit(BaseCrossValidator):
    """Splitter that removes outliers from the training folds, but not from the test folds.

    scikit-learn's own splitters do not suit a novelty detector. They train it on the outliers
    that it has to find. Besides, an integer ``cv`` means `KFold` without stratification, because
    a detector is not a classifier, so that a test fold may have no outliers.

    Parameters
    ----------
    cv : int, splitter or iterable of (train, test), default=5
        An integer means `StratifiedKFold` with that many folds, which distributes the outliers
        evenly and does not shuffle. Any other splitter works too, and so do arrays of indices.
    pos_label : bool, int, float or str, default=None
        Label of the outliers in `y`. With None they are -1 (among +1 and -1), 1 (among 0 and 1) or
        True.

    See Also
    --------
    sklearn_g2d.metrics.SCORERS : Scorers with the outliers as the class of interest.

    Notes
    -----
    A search with ``refit=True`` ends with a fit of the best candidate on *all* rows, outliers
    included. Set ``refit=False``, and fit on the normal rows yourself.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.model_selection import NormalOnlySplit
    >>> X, y = np.zeros((6, 1)), [1, 1, 1, -1, 1, -1]
    >>> for train, test in NormalOnlySplit(cv=2).split(X, y):
    ...     print(train, test)
    [2 4] [0 1 3]
    [0 1] [2 4 5]
    """

    # The splitter inside may need groups, and scikit-learn passes them on only on request.
    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self,
        cv: int | BaseCrossValidator | Iterable[tuple[ArrayLike, ArrayLike]] = 5,
        *,
        pos_label: PosLabel = None,
    ) -> None:
        # An iterator can be read once, but a search reads the splits twice: it counts them first.
        self.cv = list(cv) if isinstance(cv, Iterator) else cv
        self.pos_label = pos_label

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Generate the indices of training and test rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to split.
        y : array-like of shape (n_samples,)
            Labels of inliers and outliers, as `sklearn_g2d.metrics` takes them.
        groups : array-like of shape (n_samples,), default=None
            Groups for the splitter inside.

        Yields
        ------
        train : ndarray of shape (n_train,)
            Indices of the fold's training rows that are normal.
        test : ndarray of shape (n_test,)
            Indices of all the fold's test rows.

        Raises
        ------
        ValueError
            If `y` is None, the meaning of its labels is unknown, the lengths differ, or a training
            fold has no normal row.
        """
        if y is None:
            raise ValueError(
                "NormalOnlySplit needs to know the outliers, but y is None. Pass labels, +1 for "
                "inliers and -1 for outliers, as y; detectors ignore them in fit."
            )
        outlier = _is_outlier(y, "y", self.pos_label)
        # Not every splitter accepts all encodings of labels: give it integers.
        y = np.where(outlier, -1, 1)
        check_consistent_length(X, y, groups)
        splitter = check_cv(self.cv, y, classifier=True)
        for fold, (train, test) in enumerate(splitter.split(X, y, groups)):
            train = np.asarray(train)
            normal = train[~outlier[train]]
            if not len(normal):
                raise ValueError(
                    f"None of the {len(train)} training rows of split {fold} is normal. "
                    "Use another cv, or add normal rows."
                )
            yield normal, np.asarray(test)

    def get_n_splits(
        self, X: Any = None, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> int:
        """Count the splits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), default=None
            Rows to split; only splitters such as `LeaveOneOut` need them.
        y : array-like of shape (n_samples,), default=None
            Labels for the splitter inside.
        groups : array-like of shape (n_samples,), default=None
            Groups for the splitter inside.

        Returns
        -------
        int
            Number of splits.
        """
        return check_cv(self.cv).get_n_splits(X, y, groups)
