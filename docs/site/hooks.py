"""What mkdocs does not do by itself: the pages outside docs/, and links that lead there.

Links in the documents are those of a code host: relative, also to files outside ``docs/``. Here they lead to pages of
the site. A Markdown page outside becomes a page, every other file or folder that is linked one that shows it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS: Final = Path(__file__).resolve().parent.parent
ROOT: Final = DOCS.parent

OUTSIDE: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "lua_scripts/README.md": "lua_scripts/README.md",
}
"""Pages of the repository -> where they stand in the site, if they exist."""

LINK: Final = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)((?:#[^)\s]*)?\))")
FENCE: Final = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
ROW: Final = re.compile(r"^\|.*$", re.MULTILINE)
CODE: Final = re.compile(r"`[^`\n]+`")
NOTE: Final = "> `make docs` puts the docstrings here.\n"
"""For who reads the page where it is not made yet."""
FETCHED: Final = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?https?:|<link(?![^>]+canonical)[^>]+href=["']?https?:|url\(["']?https?:"""
)
LANGUAGES: Final = {
    ".py": "python",
    ".lua": "lua",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
}


def pages() -> Iterator[tuple[Path, str]]:
    """Every page of the site that somebody wrote, and where it stands."""
    for path in sorted(DOCS.rglob("*.md")):
        yield path, path.relative_to(DOCS).as_posix()
    for outside, inside in OUTSIDE.items():
        if (ROOT / outside).is_file():
            yield ROOT / outside, inside


def place_of(target: Path) -> str:
    """Where the site has a file or folder of the repository."""
    if target.is_dir() and (target / "README.md").is_file():
        target /= "README.md"
    path = target.relative_to(ROOT).as_posix()
    if path in OUTSIDE:
        return OUTSIDE[path]
    if target.is_relative_to(DOCS) and target.is_file() and target.suffix != ".py":
        return target.relative_to(DOCS).as_posix()
    return f"repository/{path}/index.md" if target.is_dir() else f"repository/{path}.md"


def linked(text: str, source: Path) -> Iterator[Path]:
    """Files and folders of the repository that a page links to."""
    for part in FENCE.split(text)[::2]:
        for match in LINK.finditer(part):
            target = Path(os.path.normpath(source.parent / match[2]))
            if target.exists() and target.is_relative_to(ROOT):
                yield target


def rewritten(text: str, source: Path, place: str) -> str:
    """A page's text with links as the site needs them. What leads nowhere stays, for mkdocs to complain."""

    def lead(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[2]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]
        return match[1] + posixpath.relpath(place_of(target), posixpath.dirname(place)) + match[3]

    parts = FENCE.split(text)
    parts[::2] = [ROW.sub(piped, LINK.sub(lead, part)) for part in parts[::2]]
    return "".join(parts)


def piped(row: re.Match[str]) -> str:
    """A row of a table: code hosts need a pipe in code escaped, Python-Markdown shows the backslash."""
    return CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])


def read(source: Path) -> str:
    """The text of a page: its own, or one that shows a file."""
    return source.read_text(encoding="utf-8") if source.suffix == ".md" else shown(source)


def shown(target: Path) -> str:
    """A page that shows a file, or what a folder holds."""
    path = target.relative_to(ROOT).as_posix()
    head = f"---\nsearch:\n  exclude: true\nhide: [navigation]\n---\n# {path}\n\n"
    if target.is_dir():
        names = sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in target.iterdir()
            if not entry.name.startswith((".", "__pycache__"))
        )
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(target.suffix, "text")
    return f"{head}````{language}\n{target.read_text(encoding='utf-8')}````\n"


def on_config(config: Any) -> Any:
    """Pages that are not there are not in the navigation either."""
    if not (ROOT / "CONTRIBUTING.md").is_file():
        for entry in config.nav:
            for below in entry.values():
                if isinstance(below, list):
                    below[:] = [e for e in below if "contributing.md" not in e.values()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and what pages link to."""
    add: dict[str, Path] = {}
    for source, place in pages():
        add.setdefault(place, source)
        for target in linked(source.read_text(encoding="utf-8"), source):
            add.setdefault(place_of(target), target)
    for place, source in add.items():
        if files.get_file_from_path(place) is None:
            content = read(source)
            if place == "index.md":
                content = f"---\nhide: [navigation]\n---\n{content}"
            files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to where the site has what they name."""
    place = page.file.src_uri
    source = next((source for source, at in pages() if at == place), None)
    return markdown if source is None else rewritten(markdown.replace(NOTE, ""), source, place)


def on_post_build(config: Any) -> None:
    """The site fetches nothing from outside: no font, no script, no picture."""
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in {".html", ".css", ".svg"}:
            match = FETCHED.search(path.read_text(encoding="utf-8"))
            if match:
                raise PluginError(f"{path} fetches something: {match[0]}")
