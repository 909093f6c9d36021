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
r"""Serve a checkpoint's answers with transformers' own server: the chat endpoint of OpenAI's interface, with images.

    densemllm serve CHECKPOINT --port 8000 [--dtype bfloat16] [--device cuda] [--attn-implementation sdpa] ...

The options are those of `transformers serve`. `transformers serve CHECKPOINT --trust-remote-code` is the same, with
the code that stands beside the checkpoint in the place of the installed package. Maps are not among what a chat
server gives: see `examples/serving.md`.
"""

import sys
from pathlib import Path

from densemllm.configuration_densemllm import DenseMLLMConfig
from densemllm.files import USER_ERRORS, one_line


COMMAND = "serve"  # of transformers' command line
MISSING = "transformers' server needs further packages: `pip install densemllm[serve]` ({})"


def check_checkpoint(arguments: list[str]) -> None:
    """Read the config of the checkpoint that stands first in `arguments`, where one does: what can't be served is
    known before a server starts.

    Raises:
        ValueError: there is no such checkpoint, or it is another model's.
    """
    if not arguments or arguments[0].startswith("-"):
        return
    name, _, revision = (arguments[0], "", "") if Path(arguments[0]).exists() else arguments[0].partition("@")
    try:
        DenseMLLMConfig.from_pretrained(name, **({"revision": revision} if revision else {}))
    except (OSError, ValueError) as error:
        raise ValueError(f"{arguments[0]} is not a checkpoint that can be served: {error}") from error


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is stopped.

    Args:
        argv: a checkpoint (folder or Hub name), and options of `transformers serve`; those of the process where left
            out.

    Returns:
        0, or 2 after a line on stderr where a checkpoint or an argument can't be used, or a package is missing.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        check_checkpoint(argv)
        # Here, as they take a second to load. All that the server has to know of this model is registered by now.
        from transformers.cli.transformers import app

        app([COMMAND, *argv], prog_name="densemllm", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ImportError as error:
        print(f"densemllm serve: {MISSING.format(one_line(error))}", file=sys.stderr)
        return 2
    except USER_ERRORS as error:
        print(f"densemllm serve: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
