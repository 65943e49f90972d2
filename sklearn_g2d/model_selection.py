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
    """Splitter that keeps outliers out of the training folds, and in the test folds.

    scikit-learn's own splitters do not suit a novelty detector: they train it on the outliers
    that it has to find; and an integer ``cv`` is an unstratified `KFold`, because a detector is
    not a classifier, so that test folds may lack outliers.

    Parameters
    ----------
    cv : int, splitter or iterable of (train, test), default=5
        An integer stands for `StratifiedKFold` with that many folds, which distributes the
        outliers evenly and does not shuffle. Any other splitter works too, or the splits as
        arrays of indices.
    pos_label : bool, int, float or str, default=None
        Label of the outliers in `y`; None for labels whose meaning is known: -1 among +1 and -1,
        1 among 0 and 1, True among booleans.

    See Also
    --------
    sklearn_g2d.metrics.SCORERS : Scorers with the outliers as the class of interest.

    Notes
    -----
    At its end a search with ``refit=True`` fits the best candidate on *all* rows that it
    was given, outliers included. Set ``refit=False`` and fit on the normal rows yourself.

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

    # The splitter inside may need groups, which scikit-learn passes on only where asked to.
    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self,
        cv: int | BaseCrossValidator | Iterable[tuple[ArrayLike, ArrayLike]] = 5,
        *,
        pos_label: PosLabel = None,
    ) -> None:
        # An iterator serves one pass only, but searches count the splits first.
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
            Passed on to the splitter inside.

        Yields
        ------
        train : ndarray of shape (n_train,)
            Indices of the fold's training rows that are normal.
        test : ndarray of shape (n_test,)
            Indices of all the fold's test rows.

        Raises
        ------
        ValueError
            If `y` is None or its labels have no known meaning, the lengths differ, or a training
            fold has no normal row.
        """
        if y is None:
            raise ValueError(
                "NormalOnlySplit needs to know the outliers, but y is None. Pass labels, +1 for "
                "inliers and -1 for outliers, as y; detectors ignore them in fit."
            )
        outlier = _is_outlier(y, "y", self.pos_label)
        y = np.where(outlier, -1, 1)  # as every splitter takes it
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
            Labels, passed on to the splitter inside.
        groups : array-like of shape (n_samples,), default=None
            Passed on to the splitter inside.

        Returns
        -------
        int
            Number of splits.
        """
        return check_cv(self.cv).get_n_splits(X, y, groups)
