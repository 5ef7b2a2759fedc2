"""A hook of mkdocs: the front page is README.md, links out of docs/ lead to GitHub, and words of code stay whole.

On GitHub the pages are read where they lie, so their links are relative. The site holds nothing but the pages.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
CODE_BLOCK = re.compile(r"(<pre.*?</pre>)", re.DOTALL)
CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
HYPHENATED = re.compile(r"(?<!\S)(?=\S*-)\S{2,32}(?!\S)")  # A longer word may be wider than a phone.
LINKED_NAME = re.compile(r"\[<code>~?([\w.]+)</code>\]")
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files, config):
    """Add the front page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=links_from("", text, config)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Return the text of a page with its links as the site needs them."""
    return markdown if page.file.src_path == "index.md" else links_from("docs", markdown, config)


def on_page_content(html, page, config, files):
    """Return a page's HTML with hyphenated words of code marked as whole, and names of docstrings without brackets.

    There, [`~transformers.Trainer`] and [`T5FusionConfig`] are the links of transformers' own documentation.
    """
    html = LINKED_NAME.sub(lambda name: f"<code>{name[1].removeprefix('transformers.')}</code>", html)
    parts = CODE_BLOCK.split(html)
    parts[::2] = [CODE.sub(lambda code: HYPHENATED.sub(_whole, code[0]), part) for part in parts[::2]]
    return "".join(parts)


def _whole(word):
    return f'<span class="whole">{word[0]}</span>'


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
