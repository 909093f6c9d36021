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
"""Files that are there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Write a file that is whole as soon as it has its name: what the block writes to the path that it is given gets
    the name `path` at its end, and is removed where the block fails.

    Args:
        path: the file; folders that lack are made.
        overwrite: whether a file of that name is replaced.

    Yields:
        a new path in the same folder, with the same suffix.

    Raises:
        OSError: the file can't be written, or is there; the message has its name.
    """
    path = Path(path)
    staged = path.with_name(f".{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        with open(staged, "rb+") as file:
            os.fsync(file.fileno())
        if not overwrite and os.path.lexists(path):  # since it was looked for
            raise FileExistsError(f"{path} is there already; give another name, or allow to overwrite it")
        os.replace(staged, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


__all__ = ["whole_file"]
