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
r"""Draw how rewards, entropy and length of the answers went in one or several runs of `train_grpo.py`.

python examples/rooms/reward_curve.py "rewards and NTP-M=out/rooms/grpo" "rewards alone=out/rooms/grpo_alone"
"""

import argparse
import json
from pathlib import Path

import numpy as np

from densemllm.files import OVERWRITE_HELP, check_outputs_of_script, whole_file


PANELS = {
    "rewards/class_list_iou/mean": "IoU of class lists",
    "entropy": "entropy of a token, nats",
    "completions/mean_length": "tokens of an answer",
}


def read_history(folder: Path) -> list[dict]:
    """The logged steps of a run: of its output folder, or of the last checkpoint there where it was stopped."""
    states = [
        folder / "trainer_state.json",
        *sorted(folder.glob("checkpoint-*/trainer_state.json"), key=_step_of)[::-1],
    ]
    for state in states:
        if state.is_file():
            return [row for row in json.loads(state.read_text())["log_history"] if "reward" in row]
    raise FileNotFoundError(f"{folder} has no trainer_state.json")


def _step_of(state: Path) -> int:
    return int(state.parent.name.rpartition("-")[2])


def means_over(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the values of each `window` steps that end with a logged one, from the first whole window on."""
    ends = steps[steps >= window]
    return ends, np.array([values[(steps > end - window) & (steps <= end)].mean() for end in ends])


def draw(runs: dict[str, list[dict]], window: int, path: Path, overwrite: bool = False) -> None:
    """A panel for each of `PANELS`, a line for each run."""
    import matplotlib.pyplot as plt  # not above: what can't be used is said without it, too

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.2 * len(PANELS), 2.6))
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            steps, values = (np.array([row[column] for row in rows]) for column in ("step", key))
            axis.plot(steps, values, color=f"C{number}", alpha=0.2, linewidth=0.7)
            axis.plot(*means_over(steps, values, window), color=f"C{number}", label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7, loc="lower right")
    figure.tight_layout()
    with whole_file(path, overwrite) as staged:
        figure.savefig(staged, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER of each run")
    parser.add_argument("--window", type=int, default=20, help="steps that a point is the mean of")
    parser.add_argument("--out", type=Path, default=Path("rewards.png"))
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args()
    check_outputs_of_script(parser, [args.out], overwrite=args.overwrite)
    runs = {}
    for run in args.runs:
        name, _, folder = run.partition("=")
        if not folder:
            parser.error(f"a run must be given as NAME=FOLDER, got {run!r}")
        try:
            runs[name] = read_history(Path(folder))
        except FileNotFoundError as error:
            parser.error(str(error))
    draw(runs, args.window, args.out, args.overwrite)
    print(f"{args.out}: points are means over {args.window} steps")


if __name__ == "__main__":
    main()
