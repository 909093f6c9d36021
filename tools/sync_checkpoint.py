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
r"""Bring what the package gives a checkpoint of this repository up to date: its code, chat template and version, and
what its config says of the code.

    python tools/sync_checkpoint.py            write what differs
    python tools/sync_checkpoint.py --check    write nothing; exit code 1 and a list, where something differs

A checkpoint works alone, so the code that travels with it stands beside its weights: as links to the repository's own
files, which uploading follows. To be run when a file begins or ceases to travel, a class moves to another file, or the
chat template changes; CI runs it with `--check`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from densemllm.chat_densemllm import CHAT_TEMPLATE
from densemllm.configuration_densemllm import AUTO_MAP, CUSTOM_PIPELINES, __version__


ROOT = Path(__file__).resolve().parents[1]
TEMPLATE, CONFIG = "chat_template.jinja", "config.json"
CONFIG_FIELDS = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES, "densemllm_version": __version__}


def travelling_files() -> set[str]:
    """The files that a checkpoint names, and all that they import."""
    named = [*AUTO_MAP.values(), *(row["impl"] for row in CUSTOM_PIPELINES.values())]
    paths = {ROOT / f"{name.split('.')[0]}.py" for name in named}
    return {path.name for path in paths} | {
        Path(found).name for path in paths for found in get_relative_import_files(path)
    }


def sync(folder: Path, check: bool) -> list[str]:
    """Names of what differs in a checkpoint's folder; put right unless this is a check."""
    travelling = travelling_files()
    stale = {path.name for path in folder.glob("*.py")} - travelling
    wrong = {name for name in travelling if not ((folder / name).is_file() and (folder / name).samefile(ROOT / name))}
    template = folder / TEMPLATE
    old_template = not template.is_file() or template.read_text(encoding="utf-8") != CHAT_TEMPLATE
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    old_config = {**config, **CONFIG_FIELDS} != config
    if not check:
        for name in wrong | stale:
            (folder / name).unlink(missing_ok=True)
        for name in wrong:
            (folder / name).symlink_to(Path(os.path.relpath(ROOT, folder)) / name)
        if old_template:
            template.write_text(CHAT_TEMPLATE, encoding="utf-8")
        if old_config:
            written = json.dumps({**config, **CONFIG_FIELDS}, indent=2)
            (folder / CONFIG).write_text(written + "\n", encoding="utf-8")
    return sorted(wrong | stale) + [TEMPLATE] * old_template + [CONFIG] * old_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something differs")
    args = parser.parse_args()
    differing = [
        f"{config.parent.relative_to(ROOT)}/{name}"
        for config in sorted(ROOT.glob(f"checkpoints/*/{CONFIG}"))
        for name in sync(config.parent, args.check)
    ]
    for name in differing:
        print(f"{name}: {'differs' if args.check else 'brought up to date'}")
    if args.check and differing:
        print("run python tools/sync_checkpoint.py")
    return int(args.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
