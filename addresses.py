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
"""Names of models and servers, looked at before seconds are spent on importing what loads them."""

import os
from pathlib import Path
from urllib.parse import urlsplit


LOOK_SECONDS = 10.0  # a connection that is slow, but there, is left to whoever downloads


def find_model(name: str) -> str:
    """The folder of a checkpoint, or its name on the Hub, which answers.

    Asked is once, and without the repeated tries of a download, which take a minute where there is no network.

    Args:
        name: a folder, or a name on the Hub.

    Returns:
        the name as it is; where the Hub can't be reached, or must not be asked (`HF_HUB_OFFLINE`), the folder in the
        cache.

    Raises:
        ValueError: neither is there.
    """
    if os.path.isdir(name):
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"--model {name} can't be loaded: the folder has no config.json")
        return name
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--model {name} can't be loaded: there is no such folder, and no such name") from error
    cached = try_to_load_from_cache(name, "config.json")
    folder = str(Path(cached).parent) if isinstance(cached, str) else None
    reason = "`HF_HUB_OFFLINE` is set"
    if not is_offline_mode():
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=LOOK_SECONDS)
            return name
        except GatedRepoError as error:
            raise ValueError(
                f"--model {name} can't be loaded: it is on the Hub, but access has to be granted"
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"--model {name} can't be loaded: there is no such folder, and no such public name on the Hub"
            ) from error
        except HfHubHTTPError:
            return name  # it answers: whoever downloads knows what to do
        except Exception as error:  # of the library for HTTP, of which huggingface_hub has had three
            if "Connect" not in type(error).__name__ or "Timeout" in type(error).__name__:
                return name
            reason = f"the Hub can't be reached ({error})"
    if folder is None:
        raise ValueError(
            f"--model {name} can't be loaded: there is no such folder, {reason}, and it is not in the cache"
        )
    return folder


def check_url(name: str, url: str) -> str:
    """The address of a server without what stands behind it."""
    address = url.strip().rstrip("/").removesuffix("/v1")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        name = name if name.startswith("--") else f"`{name}`"
        raise ValueError(f"{name} must be the address of a server, such as http://localhost:8000, got {url!r:.80}")
    return address
