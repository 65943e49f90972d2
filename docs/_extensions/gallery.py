"""Pictures of the gallery: thumbnails that can be read, with an alternative text."""

from docutils import nodes
from PIL import Image, ImageOps
from sphinx.application import Sphinx

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
    app.connect("doctree-read", _name_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
