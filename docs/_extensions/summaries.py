"""Summaries in tables of the reference: whole sentences, without marks of footnotes."""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext import autosummary


def _drop_citations(app: Sphinx, doctree: nodes.document) -> None:
    """Leave marks of citations to the page of the name, which explains them."""
    for table in doctree.findall(autosummary.autosummary_table):
        for mark in list(table.findall(addnodes.pending_xref)):
            if mark.get("refdomain") == "citation":
                parent, place = mark.parent, mark.parent.index(mark)
                if place and isinstance(parent[place - 1], nodes.Text):
                    parent[place - 1] = nodes.Text(parent[place - 1].astext().rstrip())
                parent.remove(mark)


def setup(app: Sphinx) -> dict[str, bool]:
    """Change what autosummary makes."""
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("Fig.", "Eq.")  # no sentence ends with them
    app.connect("doctree-read", _drop_citations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
