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
"""Images as callers give them: paths, URLs, data URIs, base64 text, bytes and open files, opened as PIL images."""

import asyncio
import base64
import binascii
import ipaddress
import os
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import IO
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import PIL.Image

from .compat_densemllm import httpx


# What [`open_image`] takes.
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | PIL.Image.Image

LOADING_KWARGS = ("allow_urls", "url_timeout", "max_url_bytes")
ACCEPTED = "a path, a URL, a data URI, base64 text, bytes, a binary file, a PIL image, or a numpy or torch array"
MAX_REDIRECTS = 5


def is_image_source(value: object) -> bool:
    """Whether `value` is of a type that [`open_image`] takes; nothing is opened."""
    types = (str, os.PathLike, bytes, bytearray, memoryview, PIL.Image.Image)
    return isinstance(value, types) or hasattr(value, "read")


def open_image(
    source: ImageSource, allow_urls: bool = True, url_timeout: float = 30.0, max_url_bytes: int = 64 * 2**20
) -> PIL.Image.Image:
    """Open an image without decoding its pixels.

    Args:
        source: a path, an http(s) or file URL, a data URI, base64 text, the bytes of an image file, a binary file that
            is open, or a PIL image, which comes back as it is.
        allow_urls: whether http(s) and file URLs are opened. `False` is for servers: what a visitor writes must not
            make them fetch from their own network. Paths are opened all the same.
        url_timeout: seconds that a download may take in all, redirects included.
        max_url_bytes: a larger download is stopped.

    Returns:
        the image; Pillow has read its header only.

    Raises:
        TypeError: `source` is of another type.
        ValueError: anything else that is wrong with it; the message names `images` and what was given. A redirect
            to an address that is not public is refused.
    """
    if isinstance(source, PIL.Image.Image):
        return source
    if not is_image_source(source):
        raise TypeError(f"`images` has an entry of the type {type(source).__name__}; accepted are {ACCEPTED}")
    name = _describe(source)
    try:
        return PIL.Image.open(_to_file(source, allow_urls, url_timeout, max_url_bytes))
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"`images` has an entry that is not an image that Pillow can read: {name}") from error
    except (OSError, ValueError, TypeError, AttributeError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"`images` has an entry that can't be opened: {name} ({error})") from error


def _describe(source) -> str:
    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        return repr(name if len(name) <= 200 else name[:197] + "...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{memoryview(source).nbytes} bytes"
    return f"a file, {getattr(source, 'name', type(source).__name__)}"


def _to_file(source, allow_urls: bool, url_timeout: float, max_url_bytes: int):
    """`source` as what `PIL.Image.open` takes: a path or a binary file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(source)
    if isinstance(source, os.PathLike):
        return _existing(os.fspath(source))
    if not isinstance(source, str):
        return source
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://|(data):", source, re.IGNORECASE)
    scheme = scheme and (scheme[1] or scheme[2]).lower()
    if scheme in ("http", "https", "file") and not allow_urls:
        raise ValueError("it is a URL, and `allow_urls` is False")
    if scheme in ("http", "https"):
        return BytesIO(_download(source, url_timeout, max_url_bytes))
    if scheme == "file":
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"a file URL names no host, got {parts.netloc!r}")
        return _existing(url2pathname(parts.path))
    if scheme == "data":
        header, comma, content = source.partition(",")
        if not comma:
            raise ValueError("a data URI has a comma before its content")
        if header.lower().endswith(";base64"):
            return BytesIO(_decode_base64(unquote_to_bytes(content).decode("latin-1")))
        return BytesIO(unquote_to_bytes(content))
    if os.path.exists(source):
        return _existing(source)
    try:
        content = _decode_base64(source)
        PIL.Image.open(BytesIO(content)).close()
    except (ValueError, PIL.UnidentifiedImageError) as error:
        if scheme:
            raise ValueError(f"URLs that start with {scheme}: are not read") from error
        raise ValueError(
            "there is no such file, and it is not a URL, a data URI or the base64 text of an image"
        ) from error
    return BytesIO(content)


def _existing(path: str) -> str:
    if not os.path.isfile(path):  # a folder, a pipe that never ends...
        raise ValueError("it is not a file" if os.path.exists(path) else "there is no such file")
    return path


def _decode_base64(text: str) -> bytes:
    """Base64 with or without line breaks, to bytes; `ValueError` for anything else."""
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its base64 text is damaged: {error}") from error


def _download(url: str, timeout: float, max_bytes: int) -> bytes:
    if not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ValueError(f"`url_timeout` must be a number of seconds greater than 0, got {timeout!r}")
    if not (isinstance(max_bytes, int) and max_bytes > 0):
        raise ValueError(f"`max_url_bytes` must be an integer greater than 0, got {max_bytes!r}")
    try:
        # A timeout of httpx is one for each read: a server that sends a byte a minute meets none. A thread of its own,
        # as the caller's may have an event loop already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _fetch(url, timeout, max_bytes)).result()
    except TimeoutError as error:
        raise ValueError(f"it took longer than `url_timeout` = {timeout:g} seconds") from error
    except Exception as error:  # of a URL, a name, a socket, TLS, HTTP, or a group of these: many types, one meaning
        reason = error
        while getattr(reason, "exceptions", None):
            reason = reason.exceptions[0]
        raise ValueError((str(reason) or type(reason).__name__).partition("\n")[0]) from error


async def _fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    async with asyncio.timeout(timeout), httpx.AsyncClient(timeout=None) as client:
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", url, follow_redirects=False) as response:
                if response.next_request is not None:
                    url = response.next_request.url
                    await _check_public(url)
                    continue
                response.raise_for_status()
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > max_bytes:
                        raise ValueError(f"it is larger than `max_url_bytes` = {max_bytes}")
                return bytes(content)
    raise ValueError(f"it is redirected more than {MAX_REDIRECTS} times")


async def _check_public(url) -> None:
    """A redirect is another's choice, not the caller's: it must not lead to this machine or into its network."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, None)
    except OSError:
        return  # a name that is unknown here, but to a proxy perhaps: the request will tell
    for *_, (address, *_) in found:
        address = ipaddress.ip_address(address.partition("%")[0])
        if not (getattr(address, "ipv4_mapped", None) or address).is_global:
            raise ValueError(f"it is redirected to {url.host}, an address that is not public")


__all__ = ["open_image"]
