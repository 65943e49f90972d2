"""Pictures of the gallery: thumbnails that can be read, and alternative texts."""

import re

from docutils import nodes
from PIL import Image, ImageOps
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx_gallery.directives import imgsgnode

logger = logging.getLogger(__name__)

THUMBNAIL = (400, 280)


def _crop_thumbnails(app: Sphinx) -> None:
    """Show a part of a picture in a thumbnail, instead of all of it too small to be read."""
    for name, (number, box) in app.config.thumbnail_parts.items():
        folder = app.srcdir / "auto_examples" / name
        stem = f"sphx_glr_{folder.name}"
        images = folder.parent / "images"
        picture = Image.open(images / f"{stem}_{number:03}.png").convert("RGB")
        size = 2 * picture.size
        part = picture.crop(tuple(round(f * s) for f, s in zip(box, size, strict=True)))
        thumbnail = ImageOps.pad(part, THUMBNAIL, Image.Resampling.LANCZOS, color="white")
        thumbnail.save(images / "thumb" / f"{stem}_thumb.png")


def _name_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Give the pictures of an example the texts of its lines `# Picture: ...`, in their order."""
    name = app.env.docname.removeprefix("auto_examples/")
    script = app.srcdir.parent / "examples" / f"{name}.py"
    if name == app.env.docname or not script.exists():
        return
    texts = re.findall(r"^# Picture: (.+)$", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pictures = list(doctree.findall(imgsgnode))
    if len(pictures) != len(texts):
        logger.warning("%s has %d pictures and %d texts", name, len(pictures), len(texts))
    for picture, text in zip(pictures, texts, strict=False):
        picture["alt"] = text


def _name_thumbnails(app: Sphinx, doctree: nodes.document) -> None:
    """Give each thumbnail the title of its example as its alternative text."""
    waiting: list[nodes.image] = []
    for node in doctree.findall(lambda node: isinstance(node, nodes.image | nodes.raw)):
        if isinstance(node, nodes.image):
            waiting.append(node)
        elif "sphx-glr-thumbnail-title" in (text := node.astext()) and waiting:
            title = text.partition('thumbnail-title">')[2].partition("<")[0]
            waiting[-1]["alt"] = f"Example: {title}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Work on what sphinx-gallery has written."""
    app.add_config_value("thumbnail_parts", {}, "env")
    app.connect("builder-inited", _crop_thumbnails, priority=900)
    app.connect("doctree-read", _name_pictures)
    app.connect("doctree-read", _name_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
