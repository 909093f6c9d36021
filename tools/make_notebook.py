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
r"""Pages of `docs/` as one notebook, run, with its outputs.

    pip install -e ".[docs]"
    python tools/make_notebook.py --out examples/densemllm.ipynb

The pages are the source: their Python is its cells, their commands are cells of the shell. The notebook of the
repository is made of `get_started.md`, `finetune.md` (whose training takes the minutes that the page says) and
`tasks.md`.
"""

import argparse
import base64
import io
import re
import tempfile
from pathlib import Path

import nbformat
import PIL.Image
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from densemllm.files import OVERWRITE_HELP, check_outputs_of_script


ROOT = Path(__file__).resolve().parents[1]
PAGES = ("get_started", "finetune", "tasks")
BLOCK = re.compile(
    r"(?P<mark><!-- not run: [^\n]+ -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```\n", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!http)[^()\s]+\)")
IMAGE = re.compile(r"!\[[^\]]*\]\([^()\s]+\)\n*")
# Installing is done where the notebook runs; its folder is not the repository's root.
FIRST = "import os\n\nif not os.path.isdir('checkpoints'):\n    os.chdir('..')"


def read_page(page: str) -> list:
    """The cells of a page: its words without images and links to other pages, and what is run of its code."""
    text, cells, start = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), [], 0

    def say(words: str) -> None:
        words = LINK.sub(r"\1", IMAGE.sub("", words)).strip()
        if words:
            cells.append(new_markdown_cell(words))

    for match in BLOCK.finditer(text):
        code = match["code"].rstrip()
        lines = [line for line in code.splitlines() if not line.startswith("pip install")]
        if match["mark"] or match["kind"] not in ("python", "bash"):
            continue  # it stays among the words
        say(text[start : match.start()])
        start = match.end()
        if match["kind"] == "python":
            cells.append(new_code_cell(code))
        elif lines:
            cells.append(new_code_cell("\n".join(["%%bash", *lines])))
    say(text[start:])
    return cells


def joined(outputs: list) -> list:
    """Outputs of a cell, with what was printed in pieces as one text."""
    found: list = []
    for output in outputs:
        for kind, value in output.get("data", {}).items():
            if kind == "image/png":  # in 256 colours, a third of the size
                with PIL.Image.open(io.BytesIO(base64.b64decode(value))) as image:
                    buffer = io.BytesIO()
                    image.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
                output["data"][kind] = base64.b64encode(buffer.getvalue()).decode()
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", default=PAGES, metavar="NAME", help="of docs/, without .md")
    parser.add_argument("--out", required=True, help="notebook to write")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    check_outputs_of_script(parser, [args.out], [ROOT / "docs"], args.overwrite)
    notebook = new_notebook(cells=[new_code_cell(FIRST), *(cell for page in args.pages for cell in read_page(page))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("checkpoints", "examples", "train_hf.py"):  # what it writes doesn't come into the repository
            (Path(folder) / name).symlink_to(ROOT / name)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.pop("id", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # no bars of progress, no warnings
            cell.outputs = joined([output for output in cell.outputs if output.get("name") != "stderr"])
    notebook.nbformat_minor = 4  # whose cells need no ids, which would change each time
    nbformat.write(notebook, args.out)
    print(f"{args.out}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
