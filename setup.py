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
"""The package's long description: the README with absolute addresses. All else is in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).resolve().parent
# A link or an image; or, to be left alone, one that is shown as code.
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)|(?P<code>`[^`\n]*\]\([^`\n]*`)")


def absolute_links(text: str, repository: str) -> str:
    """Markdown with the relative links and images of a repository's page as addresses: outside of the repository, the
    page shows them all the same.

    Args:
        text: the page; links in code are left alone.
        repository: its address, as `https://example.org/owner/name`, where files are at `blob/HEAD/` and, as they are,
            at `raw/HEAD/`. Empty: the text is returned as it is.
    """
    if not repository:
        return text

    def replace(link: re.Match) -> str:
        target = link["target"]
        if link["code"] or re.match(r"[a-z][a-z0-9+.-]*:|#|/", target):
            return link[0]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository.rstrip('/')}/{kind}/HEAD/{target})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def repository() -> str:
    """The address that setup.cfg has."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config.get("densemllm", "repository", fallback="").strip()


if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        script_name="setup.py",  # a file at the root, as the package's modules are, that is none of them
        long_description=absolute_links(readme, repository()),
        long_description_content_type="text/markdown",
    )
