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
r"""The released checkpoint's full geometry: 5.3 billion random weights in bfloat16, converted, loaded, and asked.

    python benchmarks/released_geometry.py [--folder DIR] [--quick]

Writes a checkpoint in the original layout (10.7 GB), converts it (10.7 GB more), loads the result and runs
`predict_dense` on one picture of 640x480, each in a process of its own whose peak memory is measured. Needs 22 GB of
disk and about 16 GB of memory. Ends with one line of JSON: seconds and peak GiB of each.
"""

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch
from measure import fast_dtype
from predict_dense import make_image, make_model
from safetensors.torch import save_file

from densemllm import DenseMLLMConfig, DenseMLLMForConditionalGeneration
from densemllm.convert_youtu_vl_to_densemllm import convert
from densemllm.released_densemllm import RELEASED_KEYS, RELEASED_TEXT_CONFIG


def original_name(name: str) -> str:
    for pattern, own in RELEASED_KEYS.items():
        if name.startswith(own):
            return pattern.removeprefix("^").replace("\\", "") + name.removeprefix(own)
    return name


def make_source(folder: Path, layers: int | None, shards: int = 3) -> None:
    """Random weights under the original names, and a flat config; one shard in memory at a time."""
    processor = make_model(64, 1, 128, 1, "cpu").get_processor()
    folder.mkdir(parents=True)
    processor.tokenizer.save_pretrained(folder)
    ids = processor.tokenizer.get_vocab()
    text = {name: value for name, value in RELEASED_TEXT_CONFIG.items() if name != "rope_parameters"}
    text |= {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0, "rope_theta": 500000.0}
    vision = {} if layers is None else {"num_hidden_layers": layers}
    flat = {
        "model_type": "youtu_vl", "torch_dtype": "bfloat16", **text, "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"], "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    if layers is not None:
        flat["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(flat))
    with torch.device("meta"):
        model = DenseMLLMForConditionalGeneration(DenseMLLMConfig.from_pretrained(folder))
    shapes = {original_name(name): weight.shape for name, weight in model.named_parameters()}
    names, weight_map = sorted(shapes), {}
    generator = torch.Generator().manual_seed(0)
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        tensors = {}
        for name in own:
            tensors[name] = torch.empty(shapes[name], dtype=torch.bfloat16)
            if name.endswith("norm.weight") or "layernorm" in name or "layer_norm" in name or "ln_q" in name:
                tensors[name].fill_(1.0)
            else:
                tensors[name].normal_(0, 0.02, generator=generator)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load_and_predict(folder: Path, dtype: torch.dtype) -> dict:
    start = time.perf_counter()
    model = DenseMLLMForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    loaded = time.perf_counter()
    image = make_image(480, 640)
    prediction = model.predict_dense(image, task=("segmentation", "depth"), labels=["wall", "floor", "chair"])
    done = time.perf_counter()
    assert prediction.segmentation.shape == prediction.predicted_depth.shape == (480, 640)
    assert math.isfinite(float(prediction.predicted_depth.sum()))
    encoded = model.encode_image(image)
    start_again = time.perf_counter()
    model.predict_dense(encoded, task="segmentation", labels=["cup", "plate"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "load_seconds": loaded - start,
        "predict_seconds": done - loaded, "second_query_seconds": time.perf_counter() - start_again,
    }  # fmt: skip


def _run(results, function, args):
    start = time.perf_counter()
    value = function(*args)
    seconds = time.perf_counter() - start
    results.put((value, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def in_own_process(function, *args):
    """What a function returns, its seconds, and the peak GiB of its process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_run, args=(results, function, args))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.2)
    if results.empty():
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")
    answer = results.get()
    process.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the two checkpoints are written; removed afterwards")
    parser.add_argument("--quick", action="store_true", help="one layer of everything (1.9 GB on disk)")
    args = parser.parse_args()
    dtype = fast_dtype("cpu") if args.quick else torch.bfloat16  # all of it in float32 would be 21 GB
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        _, made, _ = in_own_process(make_source, folder / "source", 1 if args.quick else None)
        size = sum(file.stat().st_size for file in (folder / "source").glob("*.safetensors")) / 1e9
        largest = max(file.stat().st_size for file in (folder / "source").glob("*.safetensors")) / 2**30
        print(f"source: {size:.2f} GB, largest shard {largest:.2f} GiB, made in {made:.0f} s", flush=True)
        _, seconds, peak = in_own_process(convert, str(folder / "source"), str(folder / "out"))
        print(f"converted in {seconds:.0f} s, peak memory {peak:.2f} GiB", flush=True)
        shutil.rmtree(folder / "source")
        results, _, use_peak = in_own_process(load_and_predict, folder / "out", dtype)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{results['parameters'] / 1e9:.2f} billion parameters, loaded in {results['load_seconds']:.1f} s")
    print(f"predict_dense, two tasks, 640x480: {results['predict_seconds']:.1f} s; a second question on the encoded "
          f"picture {results['second_query_seconds'] * 1e3:.0f} ms; peak memory {use_peak:.2f} GiB")  # fmt: skip
    results |= {
        "convert_seconds": seconds, "convert_peak_gib": peak, "largest_shard_gib": largest, "use_peak_gib": use_peak
    }  # fmt: skip
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
