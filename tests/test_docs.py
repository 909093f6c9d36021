"""The pages: their code runs on the checkpoint of the repository, their commands have only options that there are, and
their links lead somewhere."""

import contextlib
import io
import re
import shlex
from functools import cache

import pytest

from densemllm.cli import main
from repository import ROOT, load_script, require


require("docs")
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")) + ["README.md"]
OTHERS = [
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"),
                 *(ROOT / "integrations").rglob("*.md"))
    if path.name != "README.md" or path.parent != ROOT
]  # fmt: skip
NOT_RUN = re.compile(r"<!-- not run: [^\n]+ -->\s*\Z")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def blocks(page, language):
    """Code of a page in that language; what a comment before it says is not run is left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if not NOT_RUN.search(text[: match.start()]):
            yield match.group(1)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# The code of export.md runs on what its commands write: tests/test_export.py runs both.
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python")) and page != "docs/export.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(require(name))
    (tmp_path / "tuned").symlink_to(ROOT / "checkpoints/densemllm-rooms")  # what finetune.md trains
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES + OTHERS)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target in LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            wrong.append(target)
    assert wrong == []


def test_links_of_the_site():
    site_link = load_script("tools/docs_site.py").site_link
    pages = {"examples/serving.md", "benchmarks/README.md"}
    assert site_link("docs/gpu.md", "released.md#what-was-verified", pages) == "released.md#what-was-verified"
    assert site_link("docs/gpu.md", "../examples/serving.md", pages) == "repository/examples/serving.md"
    assert site_link("examples/serving.md", "../docs/gpu.md#memory", pages) == "../../gpu.md#memory"
    assert site_link("examples/serving.md", "../benchmarks/README.md", pages) == "../benchmarks/README.md"
    assert site_link("examples/serving.md", "../README.md", pages) == "../../index.md"
    assert site_link("docs/predict.md", "../benchmarks/refinement.py", pages) is None
    assert (
        site_link("docs/predict.md", "https://arxiv.org/abs/2602.14134", pages) == "https://arxiv.org/abs/2602.14134"
    )
    assert site_link("docs/predict.md", "#images", pages) == "#images"


def commands(page):
    """Lines of the shell on a page, as words, without what starts several processes."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                starts = [
                    place for place, word in enumerate(words)
                    if word in (*SCRIPTS, "densemllm") and not words[max(place - 1, 0)].startswith("--")
                ]  # fmt: skip
                if starts:
                    yield words[starts[0] :]


SCRIPTS = ("train_hf.py", "train_grpo.py", "evaluate_densemllm.py")
# Their options are transformers' own; their packages are extras.
NOT_ASKED = ("serve", "app", "train_grpo.py")


@cache
def options(command):
    """The options in the help of a script, or of one of our commands."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        if command.endswith(".py"):
            load_script(command).main(["--help"])
        else:
            main([command, "--help"])
    return set(re.findall(r"--[a-zA-Z][\w-]*", output.getvalue()))


@pytest.mark.parametrize("page", [page for page in PAGES + OTHERS if any(commands(page))])
def test_commands_have_only_options_that_there_are(page):
    for words in commands(page):
        command = words[0] if words[0] in SCRIPTS else words[1]
        asked = {word.partition("=")[0] for word in words if re.match("--[a-zA-Z]", word)}
        if asked and command not in NOT_ASKED:
            assert asked - options(command) == set(), " ".join(words)
