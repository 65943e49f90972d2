"""The source columns, in a table, of the columns that fitted transformers make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from sklearn_g2d.utils.arrays import Floats

# The index of a column of the table, or the name of a column that is made of several columns.
Label = int | str

# A mark replaces the name of a column, and is found again inside the names that transformers make
# from it. Its characters are for private use, so that real names do not contain them.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile(_MARK.format(r"(\d+)"))


def trace_columns(transformer: Any, labels: Sequence[Label], prefix: str = "") -> list[Label]:
    """Return the labels of a fitted transformer's output, given the labels of its input.

    A column that comes from columns with one label gets this label. A column that comes from
    several labels, or from unknown columns, is labelled with the prefix and its own name; see
    `format_label`.
    """
    if len(labels) == 0 or (isinstance(transformer, str) and transformer == "drop"):
        return []
    # The only other text is "passthrough".
    if transformer is None or isinstance(transformer, str):
        return list(labels)
    if isinstance(transformer, Pipeline):
        for _, step in transformer.steps:
            labels = trace_columns(step, labels, prefix)
        return list(labels)
    if isinstance(transformer, ColumnTransformer):
        branches = [(name, branch) for name, branch, _ in transformer.transformers_]
        given = transformer._transformer_to_input_indices
    elif isinstance(transformer, FeatureUnion):
        branches = transformer.transformer_list
        given = dict.fromkeys(dict(branches), range(len(labels)))
    else:
        return _trace_names(transformer, labels, prefix)
    return [
        label
        for name, branch in branches
        for label in trace_columns(branch, [labels[i] for i in given[name]], f"{prefix}{name}__")
    ]


def _trace_names(transformer: Any, labels: Sequence[Label], prefix: str) -> list[Label]:
    """Find sources by the names that the transformer makes when its input's names are marks."""
    if not hasattr(transformer, "get_feature_names_out"):
        raise ValueError(
            f"{type(transformer).__name__} does not say which columns it makes, because it has no "
            "get_feature_names_out. Give it this method; to a FunctionTransformer that changes "
            'every column alone, pass feature_names_out="one-to-one".'
        )
    marks = np.asarray([_MARK.format(index) for index in range(len(labels))], dtype=object)
    # A transformer accepts only the names of its `fit`. Change them in a copy: the user's
    # transformer must not change.
    renamed = copy(transformer)
    vars(renamed)["feature_names_in_"] = marks

    def relabel(name: str) -> Label:
        # A name without a mark, such as "pca0", may come from all columns.
        sources = {labels[int(index)] for index in _MARKED.findall(name)} or set(labels)
        if len(sources) == 1:
            return sources.pop()
        marked = [label if isinstance(label, str) else _MARK.format(label) for label in labels]
        return prefix + _MARKED.sub(lambda found: marked[int(found[1])], name)

    return [relabel(name) for name in renamed.get_feature_names_out(marks)]


def format_label(label: Label, names: Sequence[Any]) -> Any:
    """Turn a label into a name, given the names of the table's columns."""
    if isinstance(label, int):
        return names[label]
    return _MARKED.sub(lambda found: str(names[int(found[1])]), label)


def sum_by_label(parts: Floats, labels: Sequence[Label], kept: Sequence[Label]) -> Floats:
    """Add up the columns of `parts` that have one label: (n_samples, number of `kept`)."""
    position = {label: index for index, label in enumerate(kept)}
    sums = np.zeros((len(parts), len(kept)))
    for column, label in zip(parts.T, labels, strict=True):
        sums[:, position[label]] += column
    return sums
