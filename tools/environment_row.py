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
"""One row of the table of tested versions (docs/versions.md): what is installed here, and what the tests said of it.

python tools/environment_row.py --header
python tools/environment_row.py oldest pytest.log
"""

import argparse
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


PACKAGES = (
    "transformers", "torch", "huggingface-hub", "accelerate", "datasets", "peft", "numpy", "pillow", "torchvision",
)  # fmt: skip


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the environment")
    parser.add_argument("log", nargs="?", type=Path, help="what pytest printed")
    parser.add_argument("--header", action="store_true", help="the table's first two lines")
    args = parser.parse_args()
    cells = ["environment", "Python", *PACKAGES, "tests"]
    if args.header:
        print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
        return 0
    if args.log is None:
        parser.error("give the environment's name and pytest's log, or --header")
    said = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed)[^=]*?)(?: in [\d.]+s.*)?(?: =+)?$", args.log.read_text(), re.M)
    tests = re.sub(r", \d+ warnings?", "", said[-1]).strip() if said else "no result"
    print(f"| {' | '.join([args.name, platform.python_version(), *map(installed, PACKAGES), tests])} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
