"""What is uploaded: the source distribution has what its tests need, the long description what the README shows."""

import configparser
import re
import subprocess
import sys

import pytest

from repository import ROOT, load_script, require


require("setup.py")
ADDRESS = "https://example.org/owner/name"
NOT_UPLOADED = {".gitignore"}


@pytest.fixture(scope="module")
def setup():
    pytest.importorskip("setuptools")
    return load_script("setup.py")


def test_the_source_distribution_is_the_repository(setup, tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("needs the repository's own list of files")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    (sources,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    files = {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}
    assert files - {path.removeprefix("./") for path in sources.read_text().splitlines()} == NOT_UPLOADED


def test_links_are_absolute(setup):
    text = (
        "![a room](examples/room.png) and [docs](docs/export.md#run), [paper](https://arxiv.org/abs/2602.14134),\n"
        "[above](#top), `[x](y)` and [`LICENSE`](LICENSE), `z`\n"
        "```python\nlabels[0](image)  # [x](y)\n```\n[last](LICENSE)"
    )
    found = setup.absolute_links(text, f"{ADDRESS}/")
    assert found == text.replace("](examples", f"]({ADDRESS}/raw/HEAD/examples").replace(
        "](docs", f"]({ADDRESS}/blob/HEAD/docs"
    ).replace("](LICENSE", f"]({ADDRESS}/blob/HEAD/LICENSE")
    assert setup.absolute_links(text, "") == text


def test_all_images_of_the_readme_are_absolute(setup):
    readme = require("README.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert images and all((ROOT / path).is_file() for path in images)
    assert "<img" not in readme  # which `absolute_links` does not know
    found = setup.absolute_links(readme, ADDRESS)
    assert re.findall(r"!\[[^\]]*\]\(([^)]+)\)", found) == [f"{ADDRESS}/raw/HEAD/{path}" for path in images]
    assert not re.findall(r"(?m)^\[[^\]]*\]\((?!https?:|#)", found)


def test_the_address_stands_in_one_place(setup):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["densemllm"]["repository"].strip() == setup.repository()
    assert not config.has_option("metadata", "long_description")  # which would win over setup.py
