"""From which column of a table each column comes that fitted transformers make of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from sklearn_g2d.utils.arrays import Floats

# The index of a column of the table, or the name of a column that is made of several.
Label = int | str

# Stands for the name of a column, so that it is found again inside of longer names: of characters
# that mean nothing, which names do not contain.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile(_MARK.format(r"(\d+)"))


def follow(transformer: Any, labels: Sequence[Label], prefix: str = "") -> list[Label]:
    """Give the labels of the columns that a fitted transformer makes of columns with labels.

    A column that is made of columns with one label keeps this label. One that is made of several,
    or does not say of which, is labelled with its own name, see `spell`, after the prefix.
    """
    if len(labels) == 0 or (isinstance(transformer, str) and transformer == "drop"):
        return []
    if transformer is None or isinstance(transformer, str):  # "passthrough"
        return list(labels)
    if isinstance(transformer, Pipeline):
        for _, step in transformer.steps:
            labels = follow(step, labels, prefix)
        return list(labels)
    if isinstance(transformer, ColumnTransformer):
        branches = [(name, branch) for name, branch, _ in transformer.transformers_]
        given = transformer._transformer_to_input_indices
    elif isinstance(transformer, FeatureUnion):
        branches = transformer.transformer_list
        given = dict.fromkeys(dict(branches), range(len(labels)))
    else:
        return _follow_names(transformer, labels, prefix)
    return [
        label
        for name, branch in branches
        for label in follow(branch, [labels[i] for i in given[name]], f"{prefix}{name}__")
    ]


def _follow_names(transformer: Any, labels: Sequence[Label], prefix: str) -> list[Label]:
    """Let the transformer name what it makes of columns whose names are marks."""
    if not hasattr(transformer, "get_feature_names_out"):
        raise ValueError(
            f"{type(transformer).__name__} does not say which columns it makes, because it has no "
            "get_feature_names_out. Give it this method; to a FunctionTransformer that changes "
            'every column alone, pass feature_names_out="one-to-one".'
        )
    marks = np.asarray([_MARK.format(index) for index in range(len(labels))], dtype=object)
    renamed = copy(transformer)  # for it insists on the names that it was fitted with
    vars(renamed)["feature_names_in_"] = marks

    def relabel(name: str) -> Label:
        sources = {labels[int(index)] for index in _MARKED.findall(name)} or set(labels)
        if len(sources) == 1:
            return sources.pop()
        marked = [label if isinstance(label, str) else _MARK.format(label) for label in labels]
        return prefix + _MARKED.sub(lambda found: marked[int(found[1])], name)

    return [relabel(name) for name in renamed.get_feature_names_out(marks)]


def spell(label: Label, names: Sequence[Any]) -> Any:
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
