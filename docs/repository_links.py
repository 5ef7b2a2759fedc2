"""A hook of mkdocs: the front page is README.md, and links out of docs/ lead to the repository on GitHub.

On GitHub the pages are read where they lie, so their links are relative. The site holds nothing but the pages.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files, config):
    """Add the front page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=links_from("", text, config)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Return the text of a page with its links as the site needs them."""
    return markdown if page.file.src_path == "index.md" else links_from("docs", markdown, config)


def links_from(folder, markdown, config):
    """Return the text of a page in `folder` of the repository, with its links as the site needs them."""

    def on_site(link):
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"a page links to {path}, which does not exist")
        if path == "README.md":
            return "index.md"
        if path.startswith("docs/") and not path.startswith("docs/upstream"):
            return path.removeprefix("docs/")
        return f"{config.repo_url}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"

    return LINK.sub(on_site, markdown)
