# Copyright 2026 The densemllm authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What mkdocs needs to know (`hooks` of mkdocs.yml): pages that stand elsewhere in the repository are pages of the
site, under `repository/`, and links between all of them lead to where they are there.

A link to a file that is not a page (a script, a folder) leads to the repository on the web where `repo_url` of
mkdocs.yml says where that is; without it, the link's words stay and lead nowhere.
"""

import atexit
import os
import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[1]
PREFIX = "repository/"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
IMAGES = (".png", ".jpg", ".svg")


def linked_files(page: str) -> set[str]:
    """The files of the repository, but for those of `docs/`, that a page of it links to."""
    found = set()
    for _, _, target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target.partition("#")[0]))
        is_here = "://" not in target and not target.startswith("#") and (ROOT / path).is_file()
        if is_here and path.endswith((".md", *IMAGES)) and not path.startswith("docs/"):
            found.add(path)
    return found


def outside_pages() -> list[str]:
    """Pages and images of the repository that the site takes: all that those of `docs/` lead to, and so on."""
    found: set[str] = set()
    left = [f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in (ROOT / "docs").rglob("*.md")]
    while left:
        page = left.pop()
        fresh = linked_files(page) - found - {"README.md"}  # whose place has index.md
        found |= fresh
        left += [path for path in fresh if path.endswith(".md")]
    return sorted(found)


def site_link(page: str, target: str, pages: set[str]) -> str | None:
    """The target of a link on a page of the repository as a link of the site, relative to where that page is there;
    `None`: it is no page."""
    path, mark, anchor = target.partition("#")
    if "://" in target or not path:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if path == "README.md":
        path = "docs/index.md"
    if not path.startswith("docs/") and path not in pages:
        return None
    place = {True: lambda name: name.removeprefix("docs/"), False: lambda name: PREFIX + name}
    there, here = (place[name.startswith("docs/")](name) for name in (path, page))
    return posixpath.relpath(there, posixpath.dirname(here) or ".") + mark + anchor


def on_startup(command: str, dirty: bool) -> None:
    # Docstrings are read from files, by the name of the package: the repository's folder may have another.
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    (Path(folder) / "densemllm").symlink_to(ROOT)
    sys.path.insert(0, folder)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    from mkdocs.structure.files import File

    for path in outside_pages():
        files.append(File.generated(config, PREFIX + path, abs_src_path=os.fspath(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    uri = page.file.src_uri
    own = uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else f"docs/{uri}"
    pages = set(outside_pages())

    def rewrite(match: re.Match) -> str:
        is_image, words, target = match.groups()
        link = site_link(own, target, pages)
        if link is not None:
            return f"{is_image}[{words}]({link})"
        if config.repo_url:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
            return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return words

    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)  # what stands in code is not a link
    for place in range(0, len(parts), 2):
        parts[place] = LINK.sub(rewrite, parts[place])
    return "".join(parts)
