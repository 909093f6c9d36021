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
r"""Write what the command line has to know of tasks before torch is there, from the tasks themselves.

    python tools/write_command_tables.py            write `commands/tables.json`
    python tools/write_command_tables.py --check    write nothing; exit code 1 where it differs

To be run when a task, its options or a form of file changes; `tests/test_command_tables.py` says when it has not been.
"""

import argparse
import json
import sys

from densemllm.commands.tables import FILE, make_tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where it differs")
    args = parser.parse_args()
    content = json.dumps(make_tables(), indent=1) + "\n"
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == content:
        return 0
    if args.check:
        print(f"{FILE.name} is not what the tasks say: run python tools/write_command_tables.py")
        return 1
    FILE.write_text(content, encoding="utf-8")
    print(f"{FILE.name}: brought up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
