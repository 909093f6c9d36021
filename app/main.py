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
r"""A page to try a model on: an image in; maps, answers and points in space out.

    pip install "densemllm[demo]"
    densemllm app --model MODEL
    densemllm app --model MODEL --share                  (a public address for a week, see docs/app.md)
    densemllm app --model MODEL --host 0.0.0.0 --port 80 (for the machines of a network)

Several people can use it at once: predictions wait for each other, all else goes on. A request is bounded: the upload
in bytes and pixels, the image that the model reads by `--max_pixels`, names and words in number, and all of it by
`--seconds`.
"""

import argparse
import sys
from contextlib import suppress
from importlib.util import find_spec

from densemllm.addresses import find_model
from densemllm.commands.inputs import check_server
from densemllm.files import USER_ERRORS, one_line


PROGRAM = "densemllm app"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a DenseMLLM checkpoint")
    parser.add_argument("--device", help="to run on, such as cpu or cuda:1; cuda where there is one")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights; auto: as they are stored, float32 on a CPU that only emulates bfloat16",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine's")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--share",
        action="store_true",
        help="a public address, too, by Gradio's servers: who has it can use the page",
    )
    parser.add_argument("--max_pixels", type=int, default=2**20, help="a larger image is made smaller first")
    parser.add_argument("--seconds", type=float, default=60, help="that a request may take")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="a vLLM server that runs the checkpoint, which computes in the place of this process; --model says where "
        "the checkpoint's small files are. An API key is read from the variable VLLM_API_KEY",
    )
    parser.add_argument(
        "--chat_server",
        metavar="URL",
        help="the server for questions, where that of --server gives maps (`--runner pooling`)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Serve the page until it is interrupted; 0, or 2 after a line on stderr where something can't be used.

    Args:
        argv: the words after `densemllm app`.
    """
    args = make_parser().parse_args(argv)
    try:
        for name in ("max_pixels", "seconds"):
            if not getattr(args, name) > 0:
                raise ValueError(f"--{name} must be greater than 0, got {getattr(args, name)}")
        if not 0 <= args.port < 2**16:
            raise ValueError(f"--port must be in 0..65535, got {args.port}")
        check_server(args)
        if find_spec("gradio") is None:
            raise ValueError('the page needs Gradio: pip install "densemllm[demo]"')
        serve(args)
    except USER_ERRORS as error:
        print(f"{PROGRAM}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def serve(args: argparse.Namespace) -> None:
    """Load the model and serve its page."""
    from densemllm.commands.models import load_model, quiet

    from .demo import Demo
    from .page import launch, make_page

    args.model = find_model(args.model)
    with quiet():
        model = load_model(args, timeout=args.seconds)
    page = make_page(Demo(model, args.max_pixels, args.seconds))
    try:
        _, address, _ = launch(page, server_name=args.host, server_port=args.port, share=args.share)
    except OSError as error:
        raise ValueError(f"--port {args.port} of --host {args.host} is taken, or can't be listened at") from error
    print(f"{PROGRAM}: {address} (Ctrl+C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        page.block_thread()
