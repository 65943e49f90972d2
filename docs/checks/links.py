"""Links, pictures and anchors within the built site lead somewhere; all is on one server.

python docs/checks/links.py docs/_build/html
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.foreign: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep links and names."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.add(value)
                if urlsplit(value).netloc and tag != "a":
                    self.foreign.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(root: Path) -> list[str]:
    """List the links of pages below `root` that lead nowhere; other servers are not asked."""
    root = root.resolve()
    paths = [path for path in sorted(root.rglob("*.html")) if root / "_static" not in path.parents]
    pages = {path: Page(path) for path in paths}
    broken = []
    for path, page in pages.items():
        shown = path.relative_to(root)
        broken += [f"{shown}: {source} is on another server" for source in sorted(page.foreign)]
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if other.is_dir():
                other /= "index.html"
            anchor = unquote(parts.fragment)
            if not other.exists() or (
                anchor and other in pages and anchor not in pages[other].anchors
            ):
                broken.append(f"{shown}: {target}")
    return broken


if __name__ == "__main__":
    found = broken_links(Path(sys.argv[1]))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(f"{len(found)} broken links" if found else 0)
