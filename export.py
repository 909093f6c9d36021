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
r"""The dense path of a checkpoint as a file that needs neither this package nor transformers: ONNX or `torch.export`.

    densemllm export CHECKPOINT --height 448 --width 576 --labels floor,wall,chair --out model.onnx
    densemllm export CHECKPOINT --height 448 --width 576 --out model.pt2        (the classes of its config)
    densemllm export CHECKPOINT --labels cup,plate --out cups.npy               (columns for other classes)

An image of the fixed size goes in as it is, 8-bit RGB; label logits, the best label of each pixel and depth in metres
come out, as `predict_dense` gives them for an image of that size. Which classes are told apart is an input too: the
columns of the output embedding that stand for their names. `docs/export.md` shows how such a file is run.
"""

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from densemllm.checks_densemllm import check_count
from densemllm.configuration_densemllm import __version__, check_prompt_length, class_names
from densemllm.decoding_densemllm import class_probabilities
from densemllm.depth_densemllm import DepthBins
from densemllm.files import OVERWRITE_HELP, USER_ERRORS, check_outputs, one_line, reading, whole_file
from densemllm.image_encoding_densemllm import label_columns
from densemllm.image_processing_densemllm import DenseMLLMImageProcessor, to_patches
from densemllm.modeling_densemllm import DenseMLLMForConditionalGeneration, DenseMLLMModel
from densemllm.numbers_densemllm import InputNumbers
from densemllm.processing_densemllm import DenseMLLMProcessor
from densemllm.task_base_densemllm import Labels
from densemllm.tasks_densemllm import Classes, Depth
from densemllm.tokens_densemllm import BACKGROUND_LABEL
from densemllm.vision_densemllm import AttentionSegments, DenseMLLMVisionModel


INPUTS = ("image", "label_columns")
OUTPUTS = ("label_logits", Classes.name, Depth.name)
DYNAMIC_AXES = {"image": {0: "batch_size"}, "label_columns": {0: "num_labels"}}
ONNX, PROGRAM, COLUMNS = SUFFIXES = (".onnx", ".pt2", ".npy")
METADATA = "metadata.json"  # beside the program in a .pt2 file
MAX_PROTOBUF = 2**31 - 2**20  # bytes in one ONNX file; larger weights stand in a second one
ATTENTIONS = ("sdpa", "eager")  # which a file can be made of


class FixedSegments(nn.Module):
    """[`AttentionSegments`] of any number of images of one size: what one image has, shifted from image to image."""

    def __init__(self, segments: AttentionSegments, n_patches: int):
        super().__init__()
        self.shapes, self.n_patches = segments.shapes, n_patches
        for name in ("order", "cos", "sin"):
            self.register_buffer(name, getattr(segments, name), persistent=False)

    def forward(self, n_images: int) -> AttentionSegments:
        if self.order is None:  # whole images, one after another
            factors = (None if values is None else values.repeat(n_images, 1) for values in (self.cos, self.sin))
            return AttentionSegments([(n_images, self.n_patches)], None, None, *factors)
        starts = torch.arange(n_images, device=self.order.device)[:, None] * self.n_patches
        lengths = [count * length for count, length in self.shapes]
        # Of each run of segments with one length, those of all images stand together.
        order = torch.cat([(part[None] + starts).flatten() for part in self.order.split(lengths)])
        factors = (
            None if values is None else torch.cat([part.repeat(n_images, 1) for part in values.split(lengths)])
            for values in (self.cos, self.sin)
        )
        shapes = [(n_images * count, length) for count, length in self.shapes]
        return AttentionSegments(shapes, order, order.argsort(), *factors)


class FixedTower(nn.Module):
    """The vision tower for images of one size, with the image processor's arithmetic in front."""

    def __init__(self, tower: DenseMLLMVisionModel, image_processor: DenseMLLMImageProcessor, size: tuple[int, int]):
        super().__init__()
        self.tower = tower
        self.patch_size, self.merge_size = image_processor.patch_size, image_processor.merge_size
        height, width = (edge // self.patch_size for edge in size)
        device = tower.post_layernorm.weight.device
        segments = tower.attention_segments(torch.tensor([[1, height, width]], device="cpu"), device)
        self.full, self.windows = (FixedSegments(own, height * width) for own in segments)
        positions = None
        if tower.embeddings.position_embedding is not None:
            with torch.no_grad():
                positions = tower.embeddings.resized_positions(height, width, device)
        self.register_buffer("positions", positions, persistent=False)
        gain, offset = pixel_scale(image_processor)
        self.register_buffer("gain", gain.to(device)[:, None, None], persistent=False)
        self.register_buffer("offset", offset.to(device)[:, None, None], persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`uint8 [batch_size, height, width, 3]` to `[batch_size * n_patches, hidden_size]`."""
        pixels = image.permute(0, 3, 1, 2).to(self.gain.dtype) * self.gain + self.offset
        patches = to_patches(pixels, self.patch_size, self.merge_size)
        hidden_states = self.tower.embeddings.patch_embedding(patches)
        if self.positions is not None:
            hidden_states = hidden_states + self.positions
        n_images = image.shape[0]
        return self.tower.encode(hidden_states.flatten(0, 1), self.full(n_images), self.windows(n_images))


class DensePath(nn.Module):
    """Images of one size to their label logits, classes and depth: what [`export_dense`] writes.

    Args:
        model: in float32.
        processor: of the model.
        size: `(height, width)` in pixels of the images; multiples of a vision token's cell.
        depth_range: row of the model's depth ranges.
    """

    def __init__(
        self,
        model: DenseMLLMForConditionalGeneration,
        processor: DenseMLLMProcessor,
        size: tuple[int, int],
        depth_range: str | None = None,
    ):
        super().__init__()
        self.model: DenseMLLMModel = model.model
        self.size = size
        self.tower = FixedTower(self.model.vision_tower, processor.image_processor, size)
        cell = processor.image_processor.patch_size * processor.image_processor.merge_size
        self.grid = (size[0] // cell, size[1] // cell)
        bins: DepthBins = processor.depth_bins
        prompts = ("", bins.row(depth_range).get("prompt") or "")  # of classes, of depth
        self.has_own_prompt = prompts[0] != prompts[1]
        label_ids = processor.task_label_ids(Depth.name)
        numbers = torch.arange(len(label_ids) + 1, device="cpu")
        buffers = {"depth_columns": columns_of_ids(model, label_ids), "metres": bins.look_up(numbers, depth_range)}
        for name, prompt in zip(("head", "depth_head"), prompts, strict=True):
            ids, _ = model._prompt_ids(processor, prompt, "")
            check_prompt_length(len(ids) + math.prod(self.grid), model.config)
            with torch.no_grad():
                buffers[name] = model.get_input_embeddings()(ids)
        for name, values in buffers.items():
            self.register_buffer(name, values.to(buffers["head"].device), persistent=False)

    def forward(
        self, image: torch.Tensor, label_columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            image: `uint8 [batch_size, height, width, 3]`, RGB.
            label_columns: `float32 [num_labels, hidden_size]`, of [`columns_of_labels`].

        Returns:
            `float32 [batch_size, num_labels, grid_height, grid_width]` label logits; `int64 [batch_size, height,
            width]`, the row of `label_columns` of each pixel; `float32` of the same shape, depth in metres.
        """
        features = self.model.multi_modal_projector(self.tower(image)).unflatten(0, (image.shape[0], -1))
        hidden_states = self.read(features, self.head)
        logits = self.to_map(hidden_states @ label_columns.T)
        probabilities = class_probabilities(logits.transpose(0, 1)).transpose(0, 1)
        segmentation = self.resize(probabilities, self.size).argmax(dim=1)
        if self.has_own_prompt:
            hidden_states = self.read(features, self.depth_head)
        bins = self.to_map(hidden_states @ self.depth_columns.T)
        best = self.resize(bins, (2 * self.grid[0], 2 * self.grid[1])).argmax(dim=1)
        depth = self.resize(self.metres[best + 1][:, None], self.size)[:, 0]
        return logits, segmentation, depth

    def read(self, features: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Hidden states of the vision tokens, `[batch_size, n_tokens, hidden_size]`, after the text `head`."""
        n_images, n_tokens, _ = features.shape
        embeds = torch.cat([head[None].expand(n_images, -1, -1), features], dim=1)
        token_types = torch.zeros_like(embeds[..., 0], dtype=torch.long)
        token_types[:, len(head) :] = 1
        numbers = InputNumbers(None, n_tokens)  # nothing has to be looked at while this is traced
        outputs = self.model(
            inputs_embeds=embeds, mm_token_type_ids=token_types, use_cache=False, input_numbers=numbers
        )
        return outputs.last_hidden_state[:, len(head) :]

    def to_map(self, logits: torch.Tensor) -> torch.Tensor:
        """`[batch_size, n_tokens, num_labels]` to `[batch_size, num_labels, grid_height, grid_width]`."""
        return logits.transpose(1, 2).unflatten(2, self.grid)

    @staticmethod
    def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def pixel_scale(image_processor: DenseMLLMImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand, `float32 [3]` each, that make an image processor's values of 8-bit ones."""
    factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    mean, std = torch.zeros(3), torch.ones(3)
    if image_processor.do_normalize:
        given = (image_processor.image_mean, image_processor.image_std)
        mean, std = (torch.as_tensor(values, dtype=torch.float32).expand(3) for values in given)
    return factor / std, -mean / std


def columns_of_ids(model: DenseMLLMForConditionalGeneration, label_ids: list[list[int]]) -> torch.Tensor:
    """[`label_columns`] of a model. `ValueError`: its output embedding is not a plain matrix."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.is_meta:
        raise ValueError(
            f"`checkpoint` has a {type(head).__name__} as its output embedding, of which no columns can be read: "
            "merge an adapter (`merge_and_unload`), and load the weights as plain ones, in memory"
        )
    return label_columns(head.weight.detach(), label_ids)


def load_model(
    checkpoint: "str | os.PathLike[str] | DenseMLLMForConditionalGeneration",
) -> DenseMLLMForConditionalGeneration:
    """A model that can be exported: that of a folder or Hub name, or one that is loaded already.

    Raises:
        ValueError: it can't be loaded, is not in float32, or computes its attention in a way that no file can.
    """
    model = checkpoint
    if isinstance(checkpoint, (str, os.PathLike)):
        with reading(f"checkpoint {checkpoint}"):
            model = DenseMLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
            model.get_processor()
    if not isinstance(model, DenseMLLMForConditionalGeneration):
        raise TypeError(f"`checkpoint` must be a path, a name or a model, got {type(checkpoint).__name__}")
    if model.dtype != torch.float32:
        raise ValueError(f"`checkpoint` must be in float32, got {model.dtype}: load it with `dtype=torch.float32`")
    for part in (model.config.vision_config, model.config.get_text_config()):
        if part._attn_implementation not in ATTENTIONS:
            raise ValueError(
                f"`checkpoint` computes attention with {part._attn_implementation!r}; accepted are {list(ATTENTIONS)}:"
                " load it with `attn_implementation='sdpa'`"
            )
    return model


def choose_labels(model: DenseMLLMForConditionalGeneration, labels: Labels | None) -> dict[int, str]:
    """The names of classes by their keys: `labels`, or those of the model's config; without that of the background,
    which is not read."""
    names = model.get_processor().normalize_labels(class_names(model.config) if labels is None else labels)
    names = {key: name for key, name in names.items() if name != BACKGROUND_LABEL}
    if not names:
        raise ValueError(f"`labels` must name a class other than {BACKGROUND_LABEL}, got {labels!r}")
    return names


def columns_of_labels(
    checkpoint: "str | os.PathLike[str] | DenseMLLMForConditionalGeneration", labels: Labels | None = None
) -> np.ndarray:
    """The input `label_columns` of an exported file, for any classes.

    Args:
        checkpoint: as for [`export_dense`].
        labels: names of classes, as for `predict_dense`; those of the model's config where left out.

    Returns:
        `float32 [num_labels, hidden_size]`, a row for each name in their order; `<OTHERS>`, the background, is left
        out.

    Raises:
        ValueError, TypeError: an argument that can't be used, named.
    """
    model = load_model(checkpoint)
    return _columns(model, choose_labels(model, labels)).cpu().numpy()


def _columns(model: DenseMLLMForConditionalGeneration, names: dict[int, str]) -> torch.Tensor:
    return columns_of_ids(model, model.get_processor().task_label_ids(Classes.name, names))


def check_size(height: int, width: int, image_processor: DenseMLLMImageProcessor) -> tuple[int, int]:
    """`ValueError` for a size, in pixels, that is not one of whole vision tokens, or has too many patches."""
    cell = image_processor.patch_size * image_processor.merge_size
    height, width = check_count("height", height), check_count("width", width)
    for name, edge in (("height", height), ("width", width)):
        if edge % cell:
            near = sorted({max(edge // cell, 1) * cell, (edge // cell + 1) * cell})
            raise ValueError(
                f"`{name}` must be a multiple of {cell} pixels, the edge of a vision token, got {edge}; the nearest "
                f"{'is' if len(near) == 1 else 'are'} {' and '.join(map(str, near))}"
            )
    n_patches, most = height * width // image_processor.patch_size**2, image_processor.max_num_patches
    if n_patches > most:
        raise ValueError(
            f"`height` {height} and `width` {width} are {n_patches} patches of {image_processor.patch_size} pixels; "
            f"this model's image processor takes at most {most}"
        )
    return height, width


def describe(
    model: DenseMLLMForConditionalGeneration, size: tuple[int, int], names: dict[int, str], depth_range: str | None
) -> dict[str, Any]:
    """What a file says of itself."""
    processor = model.get_processor()
    gain, offset = pixel_scale(processor.image_processor)
    return {
        "densemllm_version": __version__,
        "torch_version": str(torch.__version__),
        "checkpoint": Path(model.name_or_path).name if os.path.isdir(model.name_or_path) else model.name_or_path,
        "height": size[0],
        "width": size[1],
        "labels": list(names.values()),
        "label_keys": list(names),
        "num_depth_bins": processor.num_depth_bins,
        "depth_range": {"name": depth_range or processor.default_depth_range, **processor.depth_bins.row(depth_range)},
        # Done in the file: model values are gain * 8-bit values + offset, a channel each.
        "normalization": {"gain": gain.tolist(), "offset": offset.tolist()},
    }


def trace(path: DensePath, columns: torch.Tensor) -> torch.export.ExportedProgram:
    """The dense path as a program for any number of images and of labels."""
    image = torch.zeros((2, *path.size, 3), dtype=torch.uint8, device=columns.device)
    columns = columns if len(columns) > 1 else columns.repeat(2, 1)  # of one, the program would be for one alone
    shapes = {name: {0: torch.export.Dim(axes[0])} for name, axes in DYNAMIC_AXES.items()}
    with torch.enable_grad():  # without gradients, the tower computes in chunks, whose number is the batch's
        return torch.export.export(path, (image, columns), dynamic_shapes=shapes, strict=False)


def weights_file(out: Path) -> Path:
    """Where the weights of an ONNX file stand that don't fit into it."""
    return out.with_name(f"{out.name}.data")


def save_onnx(
    program: torch.export.ExportedProgram, columns: np.ndarray, metadata: dict[str, Any], out: Path, overwrite: bool
) -> None:
    """An ONNX file, with `columns` as the default of its input; its weights beside it where they are more than
    one such file takes."""
    import onnx_ir

    with _quiet_exporter():
        made = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, verbose=False, external_data=False,
            dynamic_shapes=DYNAMIC_AXES,
        )  # fmt: skip
    for name, value in metadata.items():
        made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    (given,) = (value for value in made.model.graph.inputs if value.name == INPUTS[1])
    given.const_value = onnx_ir.tensor(columns, name=given.name)
    made.model.graph.initializers[given.name] = given
    if sum(value.const_value.nbytes for value in made.model.graph.initializers.values()) <= MAX_PROTOBUF:
        with whole_file(out, overwrite) as staged:
            onnx_ir.save(made.model, staged)
        return
    # The file names the other one, so both are written under their own names first, in a folder of their own.
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        staged, data = Path(folder) / out.name, weights_file(out)
        onnx_ir.save(made.model, staged, external_data=data.name)
        os.replace(staged.with_name(data.name), data)
        os.replace(staged, out)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of packages that it would like to have, and of what it does for every program."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def save_program(
    program: torch.export.ExportedProgram, columns: np.ndarray, metadata: dict[str, Any], out: Path, overwrite: bool
) -> None:
    """A program of `torch.export`, with the metadata and `columns` as JSON in it."""
    files = {METADATA: json.dumps({**metadata, INPUTS[1]: columns.tolist()})}
    with whole_file(out, overwrite) as staged:
        torch.export.save(program, staged, extra_files=files)


def export_dense(
    checkpoint: "str | os.PathLike[str] | DenseMLLMForConditionalGeneration",
    out: str | os.PathLike[str],
    height: int,
    width: int,
    labels: Labels | None = None,
    depth_range: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the dense path of a checkpoint as an ONNX file or a program of `torch.export`, for images of one size.

    What it computes is `predict_dense(image, task=("segmentation", "depth"), labels=labels)` of an image of that size:
    the image processor's arithmetic, tower, projector, language model, label logits and decoding, without a background
    and without refinement. It has no key-value cache and answers no questions.

    Inputs of the file:
        `image`: `uint8 [batch_size, height, width, 3]`, RGB, upright.
        `label_columns`: `float32 [num_labels, hidden_size]`; see [`columns_of_labels`]. Those of `labels` in an ONNX
            file where left out.

    Outputs:
        `label_logits`: `float32 [batch_size, num_labels, grid_height, grid_width]`.
        `segmentation`: `int64 [batch_size, height, width]`, the row of `label_columns` of each pixel.
        `depth`: `float32 [batch_size, height, width]` in metres; in a depth range with a focal length that of a camera
            of that focal length: times f / it for one of f pixels, at the size of `image`.

    Args:
        checkpoint: folder, Hub name, or a model in float32.
        out: the file: `.onnx` (needs `pip install densemllm[onnx]`) or `.pt2`.
        height, width: size of the images in pixels: multiples of the edge of a vision token.
        labels: names of classes, as for `predict_dense`; those of the model's config where left out.
        depth_range: row of the model's depth ranges; the default one where left out.
        overwrite: whether a file of that name is replaced.

    Returns:
        the file. Where the weights are more than an ONNX file takes (2 GB), they stand in `out`.data beside it.

    Raises:
        ValueError, TypeError: an argument that can't be used, named; before the model is traced.
        OSError: the file can't be written.
    """
    out = _check_out(out, (ONNX, PROGRAM))
    check_outputs([out, *([weights_file(out)] if out.suffix == ONNX else [])], overwrite=overwrite, argument="`out`")
    if out.suffix == ONNX:
        _check_onnx_packages()
    model = load_model(checkpoint)
    processor = model.get_processor()
    size = check_size(height, width, processor.image_processor)
    processor.depth_bins.row(depth_range)
    names = choose_labels(model, labels)
    columns = _columns(model, names)
    metadata = describe(model, size, names, depth_range)
    save = save_onnx if out.suffix == ONNX else save_program
    with _frozen(model):
        program = trace(DensePath(model, processor, size, depth_range), columns)
        save(program, columns.cpu().numpy(), metadata, out, overwrite)
    return out


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """A model for inference, and afterwards as it was: what its weights require would be written with them."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for weight in trained:
            weight.requires_grad_(True)


def _check_onnx_packages() -> None:
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"an .onnx file needs further packages: `pip install densemllm[onnx]` ({error})") from error


def _check_out(out: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    if not isinstance(out, (str, os.PathLike)) or Path(out).suffix not in suffixes:
        raise ValueError(f"`out` must end in one of {list(suffixes)}, got {os.fspath(out)!r}")
    return Path(out)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of [`main`]."""
    parser = argparse.ArgumentParser(
        "densemllm export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub name")
    parser.add_argument("--height", type=int, help="of the images, in pixels; a multiple of a vision token's edge")
    parser.add_argument("--width", type=int, help="likewise")
    parser.add_argument("--labels", help="names of classes, with commas between them; those of the config by default")
    parser.add_argument("--depth_range", help="row of the checkpoint's depth ranges; its default one where left out")
    parser.add_argument(
        "--out", required=True, help="model.onnx, model.pt2, or columns.npy: columns of --labels alone"
    )
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> Path:
    """Write what the options ask for, and say where it is. Errors as for [`export_dense`]."""
    out = _check_out(options.out, SUFFIXES)
    labels = None if options.labels is None else [name.strip() for name in options.labels.split(",")]
    if out.suffix == COLUMNS:
        unused = [name for name in ("height", "width", "depth_range") if getattr(options, name) is not None]
        if unused:
            raise ValueError(f"--{unused[0]} says nothing about columns of labels; leave it out with an .npy file")
        check_outputs([out], overwrite=options.overwrite)
        columns = columns_of_labels(options.checkpoint, labels)
        with whole_file(out, options.overwrite) as staged:
            np.save(staged, columns)
        return out
    missing = [name for name in ("height", "width") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--{missing[0]} is needed for a {out.suffix} file, in pixels")
    return export_dense(
        options.checkpoint, out, options.height, options.width, labels, options.depth_range, options.overwrite
    )


def main(argv: list[str] | None = None) -> int:
    """`densemllm export`.

    Args:
        argv: arguments of the command line; those of the process where left out.

    Returns:
        0, or 2 after a line on stderr where an argument or the checkpoint can't be used.
    """
    try:
        out = run(parse_arguments(argv))
    except SystemExit as end:
        return int(end.code or 0)
    except USER_ERRORS as error:
        print(f"densemllm export: {one_line(error)}", file=sys.stderr)
        return 2
    files = [path for path in (out, weights_file(out)) if path.is_file()]
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
