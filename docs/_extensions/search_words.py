"""Words that lead the search to a page which says the same in other words."""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _add_entries(app: Sphinx, doctree: nodes.document) -> None:
    """Enter words of the page into the index, which the search asks before all else."""
    for place, words in app.config.search_words.items():
        page, _, anchor = place.partition("#")
        if page != app.env.docname:
            continue
        targets = [name for section in doctree.findall(nodes.section) for name in section["ids"]]
        if anchor and anchor not in targets:
            logger.warning("search_words: the page %s has no section %s", page, anchor)
            continue
        target = anchor or targets[0]
        entries = [("single", word, target, "main", None) for word in words]
        doctree.insert(0, addnodes.index(entries=entries, inline=False))


def _check_pages(app: Sphinx) -> None:
    for place in app.config.search_words:
        if place.partition("#")[0] not in app.project.docnames:
            logger.warning("search_words: there is no page %s", place)


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the setting `search_words`: from pages, or sections of pages, to words."""
    app.add_config_value("search_words", {}, "env")
    app.connect("doctree-read", _add_entries)
    app.connect("env-before-read-docs", lambda app, env, names: _check_pages(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
