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
r"""How long the command line takes to answer what needs no model, against what it takes to import the model's code.

    python benchmarks/command_line.py [--quick]

In turn, each in a process of its own: the general help, the help of a command, a file that is not there, a name of a
model that is not there, without a network; `import densemllm`, which any of these took before; and a depth map of the
shipped checkpoint. Ends with one line of JSON: median seconds, and how many times longer the import takes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT, IMAGE = ROOT / "checkpoints/densemllm-rooms", ROOT / "examples/rooms/room.jpg"
COMMAND = ["-m", "densemllm"]
IMPORT = "import densemllm"


def seconds(arguments: list[str], code: int) -> float:
    """Of a process that has to end with this code."""
    started = time.perf_counter()
    # A proxy that nobody answers at: there is no network, wherever this runs.
    environment = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    taken = time.perf_counter() - started
    if done.returncode != code:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-500:]}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two repeats, in under a minute")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/depth.png", "--overwrite"]
        depth = [*COMMAND, "depth", str(IMAGE), "--focal_length", "172", *out, "--model"]
        ways = {
            "--help": ([*COMMAND, "--help"], 0),
            "depth --help": ([*COMMAND, "depth", "--help"], 0),
            "a file that is not there": ([*COMMAND, "depth", "none.jpg", "--model", "none", *out], 2),
            "a model that is not there": ([*depth, "nobody/none"], 2),
            IMPORT: (["-c", IMPORT], 0),
            "a depth map": ([*depth, str(CHECKPOINT)], 0),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(1 + (2 if args.quick else args.repeats)):
            for name, (arguments, code) in ways.items():
                own = seconds(arguments, code)
                if number:  # the first time, files are not in memory yet
                    taken[name].append(own)
    medians = {name: statistics.median(own) for name, own in taken.items()}
    for name, median in medians.items():
        print(f"{name:28}{median:8.2f} s   the import takes {medians[IMPORT] / median:6.2f} times as long")
    ratios = {name: round(medians[IMPORT] / median, 2) for name, median in medians.items()}
    print(json.dumps({"seconds": {name: round(own, 3) for name, own in medians.items()}, "import_over": ratios}))


if __name__ == "__main__":
    main()
