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

r"""Turn a checkpoint in the layout of `tencent/Youtu-VL-4B-Instruct` into a DenseMLLM one.

    python convert_youtu_vl_to_densemllm.py tencent/Youtu-VL-4B-Instruct densemllm-youtu-vl-4b

Weights keep their type and are read and written a shard at a time. Every weight of the source has to be used and every
weight of the model to be there in the right shape, every field of the config has to be known, and the tokenizer has to
have every token: whatever differs is listed, and nothing is written. The folder gets its name when it is whole; of two
runs for one folder, the second ends with a sentence.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save

from densemllm import (
    DenseMLLMConfig,
    DenseMLLMForConditionalGeneration,
    DenseMLLMImageProcessor,
    DenseMLLMProcessor,
)
from densemllm.configuration_densemllm import translate_released_config
from densemllm.files import USER_ERRORS, reading
from densemllm.object_tasks_densemllm import Foreground
from densemllm.released_densemllm import RELEASED_KEYS, RELEASED_LAYOUTS
from densemllm.tasks_densemllm import Depth


INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"  # our names
FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]
IMAGE_FIELDS = ("patch_size", "image_mean", "image_std", "rescale_factor", "max_num_patches", "resample")


class ConversionError(ValueError):
    """The source is not what it should be; the message lists how it differs."""


def rename(key: str) -> str:
    """Our name of a weight of the source; as it is where there is none."""
    for pattern, name in RELEASED_KEYS.items():
        key = re.sub(pattern, name, key)
    return key


def source_folder(source: str) -> Path:
    """The local folder of a source, fetched from the Hub where it is not one."""
    if os.path.isdir(source):
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(f"{source!r} is no folder, and can't be fetched from the Hub ({error})") from error


def read_config(source: Path, ignored: list[str]) -> DenseMLLMConfig:
    try:
        values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{source / 'config.json'} can't be read ({error})") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{source / 'config.json'} must be a JSON object, got a {type(values).__name__}")
    if values.get("model_type") not in RELEASED_LAYOUTS:
        expected = " or ".join(map(repr, RELEASED_LAYOUTS))
        raise ConversionError(f"{source / 'config.json'} is of type {values.get('model_type')!r}, expected {expected}")
    try:
        return DenseMLLMConfig.from_dict(translate_released_config(values, ignored))
    except ValueError as error:
        raise ConversionError(str(error)) from error


def read_headers(source: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of every weight, from the files' headers alone."""
    files = sorted(source.glob("*.safetensors"))
    if (source / INDEX).is_file():
        weight_map = json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"]
        absent = sorted(name for name in set(weight_map.values()) if not (source / name).is_file())
        if absent:
            raise ConversionError(f"{source} lacks the shards {absent}")
        files = [source / name for name in sorted(set(weight_map.values()))]
    if not files:
        raise ConversionError(f"{source} has no safetensors files")
    headers = {}
    for file in files:
        with reading(str(file), ConversionError), safe_open(file, framework="pt") as shard:
            for key in shard.keys():
                headers[key] = (file, tuple(shard.get_slice(key).get_shape()))
    return headers


def check_weights(headers: dict, model: torch.nn.Module, tied: bool) -> list[str]:
    """How the weights differ from what the model needs."""
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    given = {rename(key): (key, shape) for key, (_, shape) in headers.items()}
    if tied and HEAD not in given:
        expected.pop(HEAD)
    problems = [f"unknown weight {key}" for name, (key, _) in given.items() if name not in expected]
    problems += [f"missing weight {name}" for name in expected if name not in given]
    problems += [
        f"{key} is {list(shape)}, expected {list(expected[name])}"
        for name, (key, shape) in given.items()
        if name in expected and shape != expected[name]
    ]
    return sorted(problems)


def check_head(headers: dict) -> list[str]:
    """A head that is stored although it is tied has to be the embedding; compared in pieces."""
    names = {rename(key): key for key in headers}
    head_key, embedding_key = names[HEAD], names[EMBEDDING]
    with (
        safe_open(headers[head_key][0], framework="pt") as head_file,
        safe_open(headers[embedding_key][0], framework="pt") as embedding_file,
    ):
        head, rows = head_file.get_slice(head_key), embedding_file.get_slice(embedding_key)
        for start in range(0, headers[head_key][1][0], 4096):
            if not torch.equal(head[start : start + 4096], rows[start : start + 4096]):
                return [f"{head_key} differs from {embedding_key}, but the config ties them"]
    return []


def make_processor(source: Path, config: DenseMLLMConfig) -> tuple[DenseMLLMProcessor | None, list[str]]:
    """The processor, and how the source's tokenizer and image settings differ from what the model needs."""
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", config=PreTrainedConfig())
    settings = {}
    if (source / "preprocessor_config.json").is_file():
        values = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
        settings = {name: values[name] for name in IMAGE_FIELDS if values.get(name) is not None}
    problems = []
    patch_size = config.vision_config.patch_size
    if settings.setdefault("patch_size", patch_size) != patch_size:
        problems.append(f"preprocessor_config.json has patch_size {settings['patch_size']}, the tower {patch_size}")
    if len(tokenizer) > config.text_config.vocab_size:
        problems.append(f"the tokenizer has {len(tokenizer)} tokens, the embedding {config.text_config.vocab_size}")
    try:
        image_processor = DenseMLLMImageProcessor(merge_size=config.spatial_merge_size, **settings)
        processor = DenseMLLMProcessor(image_processor, tokenizer, num_depth_bins=config.num_depth_bins)
        for task in (Depth, Foreground):
            processor.task_label_ids(task.name)  # looks the tokens up
    except ValueError as error:
        return None, [*problems, str(error)]
    for name, token in (
        ("image_token_id", processor.image_token),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        token_id = tokenizer.get_vocab().get(token)
        if token_id != getattr(config, name):
            problems.append(f"{name} is {getattr(config, name)} in the config, but {token} is {token_id}")
    return processor, problems


def write_weights(headers: dict, out: Path, tied: bool) -> None:
    """The shards under their new names, one at a time, and their index."""
    files = sorted({file for file, _ in headers.values()})
    weight_map, size = {}, 0
    for number, file in enumerate(tqdm(files, desc="converting shards", unit="shard"), start=1):
        shard_name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        with safe_open(file, framework="pt") as shard:
            names = {key: rename(key) for key in shard.keys()}
            tensors = {name: shard.get_tensor(key) for key, name in names.items() if not (tied and name == HEAD)}
        if not tensors:
            continue
        try:
            save_file(tensors, out / shard_name, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk is one of them
            raise OSError(f"{shard_name}: {error}") from error
        weight_map |= dict.fromkeys(tensors, shard_name)
        size += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def model_card(source: str, folder: Path, out: Path, count: int) -> str:
    """A card that names where the weights come from, and their licence as their own card states it."""
    license_, license_name, license_link = "other", None, None
    if (folder / "README.md").is_file():
        data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data
        license_, license_name, license_link = (
            data.get("license") or "other", data.get("license_name"), data.get("license_link"),
        )  # fmt: skip
    data = ModelCardData(
        license=license_,
        license_name=license_name or ("see-the-original-repository" if license_ == "other" else None),
        license_link=license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=None if os.path.isdir(source) else source,
        tags=["densemllm", "image-segmentation", "depth-estimation"],
    )
    return f"""---
{data.to_yaml()}
---

# {out.name}

The weights of `{source}` ({count / 1e9:.2f} billion parameters), unchanged in value and type, in the layout of
[DenseMLLM](https://arxiv.org/abs/2602.14134) for Transformers. Converted by `convert_youtu_vl_to_densemllm.py`. The
weights and their licence are their authors'; see the original repository before use. The code in this folder is
Apache-2.0.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{out.name}", trust_remote_code=True, dtype="bfloat16").eval()
model.predict_dense("photo.jpg", task="depth").predicted_depth  # metres
model.predict_dense("photo.jpg", task="segmentation", labels=["sky", "tree"]).segmentation
```
"""


def check_target(target: Path) -> None:
    """Raise a `FileExistsError` where there is something under the name of the folder to write."""
    if (target / "config.json").is_file():
        raise FileExistsError(f"{target} is finished already; remove it to convert again")
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there and is no converted checkpoint; give another name")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name at the end of the block, and is removed where the block fails. One
    process at a time has one for a target; what a process that was killed left there is removed by the next.

    Raises:
        FileExistsError: another process has one, or `target` is there.
        OSError: it can't be written.
    """
    # Hidden, and with a part by chance: no folder of the user's is taken for one of these.
    named = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.unfinished")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}.unfinished")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"{target} is being written by another process: wait for it, or give another name"
        ) from error
    except OSError as error:
        raise OSError(f"{target} can't be written: {error}") from error
    try:
        check_target(target)  # since the first look, another process may have come to its end
        for path in target.parent.iterdir():
            if named.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        if target.exists():
            target.rmdir()  # fails where there are files by now
        os.replace(unfinished, target)
    except FileExistsError:
        raise
    except Exception as error:  # of a full disk, tokenizers raises one of no class of its own
        raise OSError(f"{target} can't be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # still locked: who waits for it looks at the target again
            os.unlink(lock.lock_file)
        lock.release()


def convert(source: str, out: str, ignored: list[str] = ()) -> Path:
    """Convert a checkpoint.

    Args:
        source: folder or Hub name.
        out: folder to write; must not be there yet.
        ignored: names of config fields, as messages write them, to leave out without knowing what they do.

    Returns:
        the folder.

    Raises:
        FileExistsError: `out` is there, or is being written by another process.
        ConversionError: the source can't be read, or differs from what is known; nothing is written.
        OSError: `out` can't be written; nothing of it is left.
    """
    target = Path(out)
    check_target(target)
    folder = source_folder(source)
    with reading(source, ConversionError):
        config = read_config(folder, ignored)
        with torch.device("meta"):
            model = DenseMLLMForConditionalGeneration(config)
        headers = read_headers(folder)
        tied = config.tie_word_embeddings
        problems = check_weights(headers, model, tied)
        if not problems and tied and HEAD in map(rename, headers):
            problems = check_head(headers)
        processor, more = make_processor(folder, config)
        problems += more
        if problems:
            raise ConversionError("\n  ".join([f"{source} differs in {len(problems)} places:", *problems]))
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(folder)
        else:
            generation = GenerationConfig.from_model_config(config)
        count = sum(parameter.numel() for parameter in model.parameters())
        card = model_card(source, folder, target, count)

    with staged_folder(target) as unfinished:
        config.architectures = [DenseMLLMForConditionalGeneration.__name__]
        config.save_pretrained(unfinished)
        custom_object_save(model, unfinished, config=config)
        processor.save_pretrained(unfinished)
        generation.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        for file in folder.glob("LICENSE*"):
            shutil.copyfile(file, unfinished / file.name)
        write_weights(headers, unfinished, tied)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or Hub name of the original checkpoint")
    parser.add_argument("out", help="folder to write; must not be there yet")
    parser.add_argument(
        "--ignore_config_fields", nargs="*", default=[], metavar="NAME",
        help="config fields to leave out although this script does not know what they do",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        folder = convert(args.source, args.out, args.ignore_config_fields)
    except USER_ERRORS as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready: AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
