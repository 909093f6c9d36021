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
"""Dense prediction with a DenseMLLM: read an image once, then labels, depth, masks and questions from there."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .answers_densemllm import encode_rle, parse_grounding
from .image_processing_densemllm import DenseMLLMImageProcessor, check_target_sizes, resize_map
from .processing_densemllm import BACKGROUND_LABEL, DenseMLLMProcessor, get_task, parse_refs


@dataclass
class DensePrediction:
    """Maps of one image, at its own size unless asked otherwise. Fields that the task does not fill in are `None`.

    Attributes:
        segmentation (`torch.LongTensor [height, width]`): positions in `labels`, or its keys where a dict was given;
            -1 where none of them is chosen.
        segments_info (`list[dict]`): a row a segment: `id` and `label_id` (the value in `segmentation`), `label`,
            `score` (mean confidence), `area` (pixels), `was_fused` (always False).
        labels (`dict[int, str]`): the names asked for, or those that the model named, by their value.
        predicted_depth (`torch.FloatTensor [height, width]`): metres.
        mask (`torch.BoolTensor [height, width]`): the referred object.
        box (`tuple[float, float, float, float]`): of the referred object: x0, y0, x1, y1 in pixels of the image.
        scores (`torch.FloatTensor [height, width]`): confidence in [0, 1]: of the chosen label, of the depth bin, or
            of the foreground. With several tasks in one call a dict from task to map.
        logits (`torch.FloatTensor [num_labels, grid_height, grid_width]`): label logits, with `return_logits=True`
            only. With several tasks in one call a dict from task to tensor.
        text (`str`): what the model answered where it was asked for a class list or a box.
    """

    segmentation: torch.Tensor | None = None
    segments_info: list[dict] | None = None
    labels: dict[int, str] | None = None
    predicted_depth: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    scores: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    logits: "torch.Tensor | dict[str, torch.Tensor] | None" = None
    text: str | None = None

    def to_pil(self, field: str | None = None, legend: bool = False) -> PIL.Image.Image:
        """A picture of one field: classes and the mask in colours, depth from near (bright) to far (dark).

        Args:
            field: `"segmentation"`, `"predicted_depth"` or `"mask"`; the first that is there where left out.
            legend: add the names of the classes, or a scale in metres, at the right of the map.
        """
        field = self._field(field)
        values = getattr(self, field).cpu().numpy()
        if field == "predicted_depth":
            picture = PIL.Image.fromarray(colorize_depth(values))
            return _with_scale(picture, float(values.min()), float(values.max())) if legend else picture
        if field == "mask":
            values = np.where(values, 1, -1)  # what is not found is black, as what has no class
        # Ids may be of any size: the colours begin anew after 65,536 of them.
        palette = label_colors(min(max(int(values.max()) + 1, 2), 2**16))
        colors = np.concatenate([np.zeros((1, 3), np.uint8), palette])
        picture = PIL.Image.fromarray(colors[np.where(values < 0, 0, values.astype(np.int64) % 2**16 + 1)])
        if not legend:
            return picture
        if field == "mask":
            return _with_names(picture, [("found", colors[2])] if (values > 0).any() else [])
        # A class once, in the order of its number: of an open set, where each object has a colour, each object.
        rows = [(row["label"], colors[row["id"] % 2**16 + 1]) for row in self.segments_info]
        return _with_names(picture, rows + [("none of them", colors[0])] * bool((values < 0).any()))

    def to_rle(self) -> "dict | list[dict]":
        """Masks as COCO's compressed run lengths, `{"size": [height, width], "counts": str}`, as `pycocotools` reads
        and writes them: of `mask`, or of each segment, in the form of its results.

        Returns:
            one dict for a mask; for a segmentation a list with `segmentation`, `category_id`, `category`, `score` and
            `area` of each row of `segments_info`.
        """
        if self.mask is not None:
            return encode_rle(self.mask.numpy())
        if self.segmentation is None:
            raise ValueError("there is no mask and no segmentation to encode")
        return [
            {
                "segmentation": encode_rle((self.segmentation == row["id"]).numpy()), "category_id": row["label_id"],
                "category": row["label"], "score": row["score"], "area": row["area"],
            }
            for row in self.segments_info
        ]  # fmt: skip

    def overlay(self, image, field: str | None = None, alpha: float = 0.55) -> PIL.Image.Image:
        """The picture of [`to_pil`] laid over `image`, resized to the map. Pixels without a label stay as they are.

        Args:
            image: of the scene, in any form that `predict_dense` takes.
            field: as for [`to_pil`].
            alpha: weight of the map in [0, 1].
        """
        field = self._field(field)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be in [0, 1], got {alpha}")
        colors = np.asarray(self.to_pil(field), dtype=np.float32)
        picture = DenseMLLMImageProcessor().load_picture(image)  # upright, as it was seen
        picture = picture.resize((colors.shape[1], colors.shape[0]), PIL.Image.Resampling.BILINEAR)
        picture = np.asarray(picture, dtype=np.float32)
        values = getattr(self, field).cpu().numpy()
        shown = values > 0 if field == "mask" else values >= 0
        mixed = np.where(shown[..., None], alpha * colors + (1 - alpha) * picture, picture)
        return PIL.Image.fromarray(mixed.round().astype(np.uint8))

    def _field(self, field: str | None) -> str:
        there = [name for name in ("segmentation", "predicted_depth", "mask") if getattr(self, name) is not None]
        if not there or (field is not None and field not in there):
            raise ValueError(f"`field` must be one of {there}, got {field!r}")
        return field or there[0]


@dataclass
class EncodedImage:
    """An image that the model has read: start any number of label sets, maps and questions from it.

    Attributes:
        hidden_states: `[n_vision_tokens, hidden_size]`, of the vision tokens after the language model.
        image_features: `[n_vision_tokens, hidden_size]`, of the vision tokens before it.
        grid: `(height, width)` in vision tokens.
        image: the picture, upright, RGB.
        prompt: the text before the image.
        input_ids: `int64 [1, length]`, the prompt up to the last vision token.
        past_key_values: the key-value cache of `input_ids`, or `None`.
    """

    hidden_states: torch.Tensor
    image_features: torch.Tensor
    grid: tuple[int, int]
    image: PIL.Image.Image
    prompt: str
    input_ids: torch.Tensor
    past_key_values: Cache | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the picture in pixels."""
        return self.image.height, self.image.width


class DensePredictionMixin:
    """What [`DenseMLLMForConditionalGeneration`] does beyond forward and generate: `encode_image`, `predict_dense` and
    `query`. It needs nothing of the model but its backbone and its output embedding."""

    def get_processor(self, processor: DenseMLLMProcessor | None = None) -> DenseMLLMProcessor:
        """`processor`, or the one that was saved with this checkpoint.

        Raises:
            ValueError: the model comes from no checkpoint, or the processor is another model's.
        """
        kept = self.__dict__.get("_processor")
        if processor is None:
            processor = kept
            if processor is None and not self.name_or_path:
                raise ValueError("`processor` is needed: this model was not loaded from a checkpoint that has one")
            if processor is None:
                processor = DenseMLLMProcessor.from_pretrained(self.name_or_path)
        for name, own, given in (
            ("image_token_id", self.config.image_token_id, processor.image_token_id),
            ("spatial_merge_size", self.config.spatial_merge_size, processor.image_processor.merge_size),
            ("patch_size", self.config.vision_config.patch_size, processor.image_processor.patch_size),
            ("num_depth_bins", self.config.num_depth_bins, processor.num_depth_bins),
            ("depth_ranges", self.config.depth_ranges, processor.depth_ranges),
            ("default_depth_range", self.config.default_depth_range, processor.default_depth_range),
        ):
            if own != given:
                raise ValueError(f"`processor` does not belong to this model: its `{name}` is {given}, not {own}")
        if kept is None:  # that of one call is not that of the next
            self.__dict__["_processor"] = processor
        return processor

    @torch.no_grad()
    def encode_image(
        self,
        images,
        prompt: str = "",
        processor: DenseMLLMProcessor | None = None,
        batch_size: int = 8,
        use_cache: bool = True,
        focal_length: "float | list[float | None] | None" = None,
        depth_range: str | None = None,
        **images_kwargs,
    ) -> "EncodedImage | list[EncodedImage]":
        """Read images once, to predict and ask often.

        A vision token sees only what stands before it, so its hidden state is the same whatever is asked afterwards.

        Args:
            images: one image or a list of them, as for [`predict_dense`].
            prompt: text before the image, for depth of a known camera.
            processor: found from the checkpoint where left out.
            batch_size: images a forward pass.
            use_cache: keep the key-value cache, which [`query`] and class lists start from.
            focal_length, depth_range: as for [`predict_dense`].
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`EncodedImage`], or a list for a list.
        """
        processor = self.get_processor(processor)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        focal_lengths = _one_an_image(focal_length, len(images))
        scaled = [with_focal_scale(images_kwargs, processor, own, depth_range) for own in focal_lengths]
        pictures = [processor.image_processor.load_picture(image) for image in images]
        encoded = self._encode(pictures, prompt, processor, batch_size, use_cache, scaled)
        return encoded[0] if single else encoded

    def _encode(self, pictures, prompt, processor, batch_size, use_cache, images_kwargs) -> list[EncodedImage]:
        """[`encode_image`] of pictures with `images_kwargs`, one dict a picture."""
        encoded = []
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            inputs = [
                processor.image_processor(picture, return_tensors="pt", **own)
                for picture, own in zip(batch, images_kwargs[start : start + batch_size], strict=True)
            ]
            pixel_values, grid = (
                torch.cat([own[name] for own in inputs]) for name in ("pixel_values", "image_grid_thw")
            )
            features = self.model.get_image_features(
                pixel_values.to(self.device), grid.to(self.device), return_dict=True
            ).pooler_output
            merge_size = self.config.spatial_merge_size
            grids = [(height // merge_size, width // merge_size) for _, height, width in grid.tolist()]
            encoded += self._prefill_images(batch, features, grids, prompt, processor, use_cache)
        return encoded

    def _prefill_images(self, pictures, features, grids, prompt, processor, use_cache) -> list[EncodedImage]:
        """Run the language model over prompt and vision tokens of each image, images of like length together."""
        head, _ = self._prompt_ids(processor, prompt, "")
        encoded: list[EncodedImage | None] = [None] * len(pictures)
        for group in _length_groups([len(feature) for feature in features], 0.0 if use_cache else 0.1):
            longest = max(len(features[index]) for index in group)
            # Shorter rows are filled up at the right, where a causal model's earlier positions never look.
            input_ids = head.new_zeros(len(group), len(head) + longest)
            input_ids[:, : len(head)] = head
            for row, index in enumerate(group):
                input_ids[row, len(head) : len(head) + len(features[index])] = self.config.image_token_id
            outputs = self.model(
                input_ids=input_ids,
                mm_encoder_outputs={
                    "image": BaseModelOutputWithPooling(pooler_output=[features[index] for index in group])
                },
                use_cache=use_cache,
                past_key_values=DynamicCache(config=self.config.get_text_config()) if use_cache else None,
            )
            for row, index in enumerate(group):
                length = len(head) + len(features[index])
                encoded[index] = EncodedImage(
                    hidden_states=outputs.last_hidden_state[row, len(head) : length],
                    image_features=features[index],
                    grid=grids[index],
                    image=pictures[index],
                    prompt=prompt,
                    input_ids=input_ids[row : row + 1, :length],
                    past_key_values=outputs.past_key_values if use_cache else None,
                )
        return encoded

    def _prompt_ids(self, processor, prompt: str, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The chat prompt's ids before and after the vision tokens."""
        content = [{"type": "text", "text": prompt}] if prompt else []
        content += [{"type": "image"}] + ([{"type": "text", "text": question}] if question else [])
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = torch.tensor(processor.tokenizer(text, add_special_tokens=False)["input_ids"], device=self.device)
        at = (ids == self.config.image_token_id).nonzero()[:, 0]
        if len(at) != 1:
            raise ValueError(
                f"`processor.chat_template` must write one image placeholder for an image, got {len(at)}; does the "
                f"text contain {processor.image_token!r}?"
            )
        return ids[: at[0]], ids[at[0] + 1 :]

    @torch.no_grad()
    def query(
        self, image, text: str, processor: DenseMLLMProcessor | None = None, max_new_tokens: int = 256,
        stop_at: str | None = None, focal_length: float | None = None, depth_range: str | None = None, **kwargs,
    ) -> str:  # fmt: skip
        """Ask about one image in words.

        Args:
            image: an image, as for [`predict_dense`], or an [`EncodedImage`].
            text: the question.
            processor: found from the checkpoint where left out.
            max_new_tokens: length of the answer, at most.
            stop_at: a token of the vocabulary that ends the answer, as the end of the text does.
            focal_length, depth_range: of an image that isn't encoded yet, as for [`predict_dense`].
            kwargs: for `generate`; greedy decoding unless told otherwise.

        Returns:
            the answer; structural tokens such as `<ref>` stay, special ones don't.
        """
        processor = self.get_processor(processor)
        camera = {"focal_length": focal_length, "depth_range": depth_range}
        is_encoded = isinstance(image, EncodedImage)
        encoded = image if is_encoded else self.encode_image(image, processor=processor, **camera)
        if encoded.past_key_values is None:
            encoded = self._prefill_images([encoded.image], [encoded.image_features], [encoded.grid], encoded.prompt,
                                    processor, use_cache=True)[0]  # fmt: skip
        _, tail = self._prompt_ids(processor, encoded.prompt, text)
        input_ids = torch.cat([encoded.input_ids, tail[None]], dim=1)
        stop_id = None if stop_at is None else processor.tokenizer.convert_tokens_to_ids(stop_at)
        if stop_id is not None and stop_id != processor.tokenizer.unk_token_id:
            ends = self.generation_config.eos_token_id
            ends = [ends] if isinstance(ends, int) else list(ends or [])
            kwargs = {"eos_token_id": [*ends, stop_id], **kwargs}
        output = self.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=copy.deepcopy(encoded.past_key_values),  # generate writes into it
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, **kwargs},
        )
        return processor.post_process_image_text_to_text(output[:, input_ids.shape[1] :])[0]

    def label_logits(self, hidden_states: torch.Tensor, label_ids: list[list[int]]) -> torch.Tensor:
        """Score of each label: the mean of the logits of its sub-words (paper, section on decoding).

        Only the labels' columns of the output embedding are used, in one matrix product in float32.

        Args:
            hidden_states: `[n_tokens, hidden_size]`.
            label_ids: vocabulary ids of each label.

        Returns:
            `float32 [n_tokens, num_labels]`.

        Raises:
            ValueError: an id that the vocabulary lacks.
        """
        device = hidden_states.device
        flat = torch.tensor([token_id for ids in label_ids for token_id in ids], dtype=torch.long, device=device)
        label = torch.tensor([k for k, ids in enumerate(label_ids) for _ in ids], dtype=torch.long, device=device)
        vocab_size = self.config.get_text_config().vocab_size
        if len(flat) and int(flat.max()) >= vocab_size:
            raise ValueError(
                f"`processor` does not belong to this model: a label has the id {int(flat.max())}, but the vocabulary "
                f"has {vocab_size}"
            )
        counts = torch.bincount(label, minlength=len(label_ids))[:, None]
        head = self.get_output_embeddings()
        if type(head) is nn.Linear and head.weight.device == device:
            # The mean of logits is the logit of the mean column.
            columns = head.weight[flat].float()
            if len(flat) > len(label_ids):
                columns = columns.new_zeros(len(label_ids), columns.shape[1]).index_add_(0, label, columns) / counts
            return hidden_states.float() @ columns.T
        # An adapter, a quantised or an offloaded layer: only its own forward knows the logits.
        logits = torch.cat([head(chunk)[:, flat].float() for chunk in hidden_states.split(256)])
        return logits.new_zeros(len(logits), len(label_ids)).index_add_(1, label, logits) / counts.T

    @torch.no_grad()
    def predict_dense(
        self,
        images,
        task: "str | tuple[str, ...]" = "segmentation",
        labels: "list[str] | dict[int, str] | None" = None,
        text: "str | list[str] | None" = None,
        box=None,
        background: bool = False,
        threshold: float | None = None,
        depth_range: str | None = None,
        focal_length: "float | list[float | None] | None" = None,
        target_sizes=None,
        refine: str | None = None,
        return_logits: bool = False,
        processor: DenseMLLMProcessor | None = None,
        batch_size: int = 8,
        **images_kwargs,
    ) -> "DensePrediction | list[DensePrediction]":
        """Dense maps from the vision tokens' logits: the columns of the label tokens, and an argmax. No head.

        Args:
            images: a PIL image, a path, a numpy array `uint8 [height, width, 3]`, a torch tensor `[3, height, width]`
                (`uint8`, or floating point in [0, 1]), an [`EncodedImage`], or a list of these.
            task: `"segmentation"`, `"depth"`, `"referring"`, `"open_set"` (the model detects the boxes of each class
                and segments what is in them: `segmentation` then has an id for each object), or a tuple of the first
                two, which share one pass over the image where the text before the image is the same.
            labels: class names, or a dict from id to name. `None`: the model names the classes itself.
            text: expression of the object to find, for referring; one, or one an image; several for one image give a
                list.
            box: `(x0, y0, x1, y1)` in pixels of the image around that object, as for `text`. `None`: the model finds
                it from `text`.
            background: whether pixels may be none of the labels (-1); so, too, where `<OTHERS>` is one of them.
            threshold: pixels of a segmentation whose score is lower become -1; those of `<OTHERS>` stay.
            depth_range: row of `config.depth_ranges`; the config's default where left out.
            focal_length: of the image in pixels; one, or one an image (`None` where it is unknown). In a range with a
                focal length of its own, the image is scaled to that for every task, as far as the patch cap lets it,
                and depth is corrected for the rest.
            target_sizes: `(height, width)` of the maps, or one an image; the images' own sizes where left out.
            refine: `"crf"` lets near pixels of like colour agree on their class, for segmentation: [`refine_crf`] with
                the processor's `crf_options`.
            return_logits: keep the label logits on the grid of vision tokens; an open set has none.
            processor: found from the checkpoint where left out.
            batch_size: images a forward pass.
            images_kwargs: for the image processor (`scale`, `max_num_patches`...).

        Returns:
            one [`DensePrediction`], or a list for a list; maps are on the CPU.

        Raises:
            ValueError, TypeError: an argument that can't be used, named; before anything is computed.
        """
        processor = self.get_processor(processor)
        tasks = (task,) if isinstance(task, str) else tuple(task)
        rows = {name: get_task(name) for name in tasks}
        if not tasks or len(rows) < len(tasks):
            raise ValueError(f"`task` must name at least one task, each once, got {task!r}")
        cropped = {"referring", "open_set"} & set(tasks)
        if cropped and len(tasks) > 1:
            raise ValueError(f"`task` {cropped.pop()!r} looks at crops of the image and has to be alone, got {task!r}")
        if "open_set" in tasks:
            processor.normalize_labels(labels if labels is not None else [])
            if return_logits:
                raise ValueError("`return_logits` can't be given with the task 'open_set': it has no one map")
        if refine is not None and (refine != "crf" or "segmentation" not in tasks):
            raise ValueError(f"`refine` must be None, or 'crf' with the task 'segmentation', got {refine!r}")
        label_ids = {
            name: processor.task_label_ids(name, labels)
            for name, row in rows.items()
            if row.label_set != "classes" or labels is not None
        }
        range_row = processor.get_depth_range(depth_range) if "depth" in tasks else {}
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        images_kwargs = with_focal_scale(images_kwargs, processor, None, depth_range)
        focal_lengths = _one_an_image(focal_length, len(images))
        scaled = [with_focal_scale(images_kwargs, processor, own, depth_range) for own in focal_lengths]
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1], got {threshold}")
        box = _plain_boxes(box)

        entries = [
            entry if isinstance(entry, EncodedImage) else processor.image_processor.load_picture(entry)
            for entry in images
        ]
        if "referring" in tasks and single:  # several objects of one picture
            asked = [value for value in (text, box) if isinstance(value, (list, tuple))]
            if _is_one_box(box):
                asked = asked[:-1]
            if asked:
                single, entries, scaled = False, entries * len(asked[0]), scaled * len(asked[0])
        sizes = [
            entry.image_size if isinstance(entry, EncodedImage) else (entry.height, entry.width) for entry in entries
        ]
        if images_kwargs and entries and all(isinstance(entry, EncodedImage) for entry in entries):
            raise ValueError(f"{sorted(images_kwargs)} can't be given for images that are encoded already")
        if target_sizes is not None:
            target_sizes = target_sizes.tolist() if hasattr(target_sizes, "tolist") else target_sizes
            one = len(target_sizes) == 2 and not isinstance(target_sizes[0], (tuple, list))
            sizes = check_target_sizes([target_sizes] * len(entries) if one else target_sizes, len(entries))

        options = {"processor": processor, "batch_size": batch_size}
        if "referring" in tasks:
            predictions = self._predict_referring(
                entries, sizes, text, box, label_ids["referring"], return_logits, options, images_kwargs, scaled
            )
            return predictions[0] if single else predictions
        if "open_set" in tasks:
            predictions = self._predict_open_set(
                entries, sizes, labels, label_ids["open_set"], threshold, options, images_kwargs, scaled
            )
            return predictions[0] if single else predictions

        predictions = [DensePrediction(scores={}, logits={}) for _ in entries]
        encodings: dict[str, list[EncodedImage]] = {}
        for name in tasks:
            is_depth = rows[name].label_set == "depth"
            prompt = range_row.get("prompt") or "" if is_depth else ""
            ask = rows[name].label_set == "classes" and labels is None
            if prompt not in encodings:
                encodings[prompt] = self._encode_entries(entries, prompt, ask, scaled, **options)
            for index, encoded in enumerate(encodings[prompt]):
                task_labels, ids = labels, label_ids.get(name)
                own_background = background
                if ask:
                    answer = self.query(encoded, rows[name].question, processor, stop_at=processor.mask_token)
                    predictions[index].text = answer
                    task_labels = parse_refs(answer)
                    own_background = background or BACKGROUND_LABEL in answer
                    ids = processor.label_token_ids(task_labels) if task_labels else []
                logits = self.label_logits(encoded.hidden_states, ids).T.unflatten(1, encoded.grid)
                fields = self._decode(name, logits, sizes[index], task_labels, encoded, processor, {
                    "background": own_background, "threshold": threshold, "depth_range": depth_range,
                    "focal_length": focal_lengths[index], "refine": refine,
                })  # fmt: skip
                predictions[index].scores[name] = fields.pop("scores")
                predictions[index].logits[name] = logits.cpu()
                for field, value in fields.items():
                    setattr(predictions[index], field, value)
        for prediction in predictions:
            if not return_logits:
                prediction.logits = None
            elif len(tasks) == 1:
                prediction.logits = prediction.logits[tasks[0]]
            if len(tasks) == 1:
                prediction.scores = prediction.scores[tasks[0]]
        return predictions[0] if single else predictions

    def _encode_entries(
        self, entries, prompt, use_cache, images_kwargs, processor, batch_size
    ) -> list[EncodedImage]:  # fmt: skip
        """Encode pictures with `images_kwargs`, one dict an entry. Encoded images are taken as they are; for another
        prompt, it starts from their vision tokens."""
        fresh = [place for place, entry in enumerate(entries) if not isinstance(entry, EncodedImage)]
        pictures, own_kwargs = ([values[place] for place in fresh] for values in (entries, images_kwargs))
        fresh = iter(self._encode(pictures, prompt, processor, batch_size, use_cache, own_kwargs))
        encoded = []
        for entry in entries:
            if not isinstance(entry, EncodedImage):
                entry = next(fresh)
            elif entry.prompt != prompt:
                entry = self._prefill_images(
                    [entry.image], [entry.image_features], [entry.grid], prompt, processor, False
                )[0]
            encoded.append(entry)
        return encoded

    def _decode(self, task, logits, size, labels, encoded, processor, options) -> dict:
        """[`DenseMLLMProcessor.decode_dense`] with the focal length that the model saw; maps on the CPU."""
        if get_task(task).label_set == "classes" and not labels:
            nothing = torch.full(tuple(size), -1, dtype=torch.long)
            return {"segmentation": nothing, "segments_info": [], "labels": {}, "scores": torch.zeros(tuple(size))}
        if options.get("focal_length") is not None:
            cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
            seen = math.sqrt(encoded.grid[0] * encoded.grid[1]) * cell / math.sqrt(math.prod(encoded.image_size))
            options = {**options, "focal_length": options["focal_length"] * seen}
        if get_task(task).label_set != "classes":
            options = {name: value for name, value in options.items() if name != "refine"}
        elif options.get("refine") is not None:
            options = {**options, "image": encoded.image}
        fields = processor.decode_dense(task, logits, tuple(size), labels, **options)
        if get_task(task).label_set == "classes":
            fields["labels"] = processor.normalize_labels(labels)
        return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in fields.items()}

    def _predict_referring(
        self, entries, sizes, text, box, label_ids, return_logits, options, images_kwargs, scaled
    ) -> list[DensePrediction]:
        """Ground the expression to a box, draw it, crop around it, and read foreground against background there; or
        read them off the whole picture, where the processor has a `referring_prompt`. `images_kwargs` are for crops,
        `scaled` for the whole pictures, one dict an entry."""
        processor = options["processor"]
        texts = list(text) if isinstance(text, (list, tuple)) else [text] * len(entries)
        boxes = [box] * len(entries) if box is None or _is_one_box(box) else list(box)
        if len(texts) != len(entries) or len(boxes) != len(entries):
            raise ValueError(
                f"`text` and `box` must be one, or one an image, got {len(texts)} and {len(boxes)} for {len(entries)} "
                "images"
            )
        for own_text, own_box in zip(texts, boxes, strict=True):
            if own_box is None and not (isinstance(own_text, str) and own_text.strip()):
                raise ValueError(f"`text` must be an expression where no `box` is given, got {own_text!r}")

        predictions, pairs = [], []
        for entry, own_text, own_box, size, own_kwargs in zip(entries, texts, boxes, sizes, scaled, strict=True):
            prediction = DensePrediction()
            picture = entry.image if isinstance(entry, EncodedImage) else entry
            if own_box is not None:
                own_box = check_box(own_box, picture.size)
            elif processor.referring_prompt is not None:
                prompt = processor.referring_prompt.replace("{text}", own_text.strip())
                encoded = self._encode_entries([entry], prompt, False, [own_kwargs], **options)[0]
                logits = self.label_logits(encoded.hidden_states, label_ids).T.unflatten(1, encoded.grid)
                fields = self._decode("referring", logits, size, None, encoded, processor, {})
                prediction.mask, prediction.scores = fields["mask"], fields["scores"]
                prediction.logits = logits.cpu() if return_logits else None
            else:
                encoded = self._encode_entries([entry], "", True, [own_kwargs], **options)[0]
                question = get_task("referring").question.format(text=own_text.strip())
                prediction.text = self.query(encoded, question, processor, max_new_tokens=32)
                own_box = self._grounded_box(prediction.text, encoded)
            prediction.box = own_box
            predictions.append(prediction)
            if own_box is not None:
                pairs.append((picture, own_box))
        found = self._segment_boxes(pairs, label_ids, images_kwargs, **options)
        for prediction, entry, size in zip(predictions, entries, sizes, strict=True):
            if prediction.mask is not None:
                continue
            picture = entry.image if isinstance(entry, EncodedImage) else entry
            nothing = torch.zeros(picture.height, picture.width)
            mask, scores, logits = next(found) if prediction.box is not None else (nothing, nothing, None)
            if tuple(size) != tuple(mask.shape):
                mask, scores = (resize_map(whole, size, mode="nearest-exact") for whole in (mask, scores))
            prediction.mask, prediction.scores = mask > 0.5, scores
            prediction.logits = logits if return_logits else None
        return predictions

    def _segment_boxes(
        self, pairs: list[tuple[PIL.Image.Image, tuple]], label_ids, images_kwargs, processor, batch_size
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The core target of each box of a picture: foreground (0 or 1) and its chance, `float32 [height, width]` of
        the picture, and the logits of the crop; `batch_size` crops a forward pass."""
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            crops, places = zip(*(crop_box(*pair, processor.referring_crop_size) for pair in batch), strict=True)
            encodings = self._encode(crops, "", processor, batch_size, False, [images_kwargs] * len(crops))
            for (picture, _), encoded, (x0, y0, x1, y1) in zip(batch, encodings, places, strict=True):
                logits = self.label_logits(encoded.hidden_states, label_ids).T.unflatten(1, encoded.grid)
                fields = self._decode("referring", logits, encoded.image_size, None, encoded, processor, {})
                mask, scores = (torch.zeros(picture.height, picture.width) for _ in range(2))
                for whole, part in ((mask, fields["mask"].float()), (scores, fields["scores"])):
                    whole[y0:y1, x0:x1] = resize_map(part, (y1 - y0, x1 - x0), mode="nearest-exact")
                yield mask, scores, logits.cpu()

    def _predict_open_set(
        self, entries, sizes, labels, label_ids, threshold, options, images_kwargs, scaled
    ) -> list[DensePrediction]:
        """Detect the boxes of each class, and segment the core target of each box (paper, section on decoding)."""
        processor = options["processor"]
        names = processor.normalize_labels(labels)
        keys = {name: key for key, name in names.items()}
        question = get_task("open_set").question.format(text=",".join(names.values()))
        predictions, pairs = [], []
        for encoded in self._encode_entries(entries, "", True, scaled, **options):
            answer = self.query(encoded, question, processor, max_new_tokens=1024)
            found = processor.post_process_detection(answer, encoded.image_size, self._resized_size(encoded))
            boxes = [
                (keys[name], tuple(box))
                for name, box in zip(found["labels"], found["boxes"].tolist(), strict=True)
                if name in keys
            ]
            predictions.append((encoded, DensePrediction(text=answer, labels=names), boxes))
            pairs += [(encoded.image, box) for _, box in boxes]
        masks = self._segment_boxes(pairs, label_ids, images_kwargs, **options)
        for (encoded, prediction, boxes), size in zip(predictions, sizes, strict=True):
            instances = []
            for key, box in boxes:
                mask, scores, _ = next(masks)
                instances.append((key, box, mask > 0.5, scores))
            instances.sort(key=lambda instance: -int(instance[2].sum()))  # the smaller lies over the larger
            height, width = encoded.image_size
            segmentation, scores = torch.full((height, width), -1), torch.zeros(height, width)
            for number, (_, _, mask, chances) in enumerate(instances):
                if threshold is not None:
                    mask = mask & (chances >= threshold)
                segmentation[mask], scores[mask] = number, chances[mask]
            if tuple(size) != (height, width):
                segmentation = resize_map(segmentation.float(), size, mode="nearest-exact").long()
                scores = resize_map(scores, size, mode="nearest-exact")
            prediction.segmentation, prediction.scores = segmentation, scores
            prediction.segments_info = []
            for number, (key, box, _, _) in enumerate(instances):
                own = segmentation == number
                if own.any():
                    prediction.segments_info.append(
                        {
                            "id": number, "label_id": key, "label": names[key], "score": float(scores[own].mean()),
                            "area": int(own.sum()), "box": box, "was_fused": False,
                        }
                    )  # fmt: skip
        return [prediction for _, prediction, _ in predictions]

    def _resized_size(self, encoded: EncodedImage) -> tuple[int, int]:
        """`(height, width)` in pixels of the picture as the model saw it."""
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return encoded.grid[0] * cell, encoded.grid[1] * cell

    @torch.no_grad()
    def predict(
        self,
        images,
        task: str,
        text: "str | list[str] | None" = None,
        prompt: str | None = None,
        processor: DenseMLLMProcessor | None = None,
        max_new_tokens: int = 1024,
        focal_length: "float | list[float | None] | None" = None,
        depth_range: str | None = None,
        **kwargs,
    ) -> "dict | list[dict]":
        """Answers in words, as objects: prompt, [`query`], and the parser of what came.

        Args:
            images: as for [`predict_dense`].
            task: `"detection"`, `"grounding"`, `"polygon"`, `"pose"`, `"counting"` or `"classification"`.
            text: what to look for: a phrase, or a list of class names (for detection and classification). Needed but
                for detection and pose.
            prompt: the question in other words, with `{text}` where `text` belongs.
            processor: found from the checkpoint where left out.
            max_new_tokens: length of the answer, at most.
            focal_length, depth_range: of images that aren't encoded yet, as for [`predict_dense`].
            kwargs: for `generate`.

        Returns:
            a dict, or a list for a list, with `text`, the answer itself, and what its parser gives, in pixels of the
            image: see `DenseMLLMProcessor.post_process_detection` and the others.

        Raises:
            ValueError: an unknown task, or a `text` that is missing.
        """
        processor = self.get_processor(processor)
        question, parse = processor.answer_task(task, text, prompt)
        single = not isinstance(images, (list, tuple))
        images = [images] if single else images
        results = []
        for image, own in zip(images, _one_an_image(focal_length, len(images)), strict=True):
            camera = {"focal_length": own, "depth_range": depth_range}
            is_encoded = isinstance(image, EncodedImage)
            encoded = image if is_encoded else self.encode_image(image, processor=processor, **camera)
            answer = self.query(encoded, question, processor, max_new_tokens, **kwargs)
            results.append({"text": answer, **parse(answer, encoded.image_size, self._resized_size(encoded))})
        return results[0] if single else results

    def _grounded_box(self, answer: str, encoded: EncodedImage) -> tuple[float, float, float, float] | None:
        """The first box of an answer in pixels of the image; `None` if there is none."""
        boxes = parse_grounding(answer, encoded.image_size, self._resized_size(encoded))["boxes"].tolist()
        return tuple(boxes[0]) if boxes else None


def _one_an_image(focal_length, count: int) -> list:
    """A focal length for each of `count` images, or a `ValueError` where there are more or fewer."""
    focal_length = focal_length.tolist() if hasattr(focal_length, "tolist") else focal_length
    if not isinstance(focal_length, (list, tuple)):
        return [focal_length] * count
    if len(focal_length) != count:
        raise ValueError(f"`focal_length` must be one, or one an image, got {len(focal_length)} for {count} images")
    return list(focal_length)


def with_focal_scale(
    images_kwargs: dict, processor: DenseMLLMProcessor, focal_length: float | None, depth_range: str | None
) -> dict:
    """Arguments of the image processor, with the scale that gives pictures the focal length of their depth range on
    top of the scale that they ask for. `ValueError` for a focal length that is none."""
    if focal_length is not None:
        focal_length = float(focal_length)
        if not (math.isfinite(focal_length) and focal_length > 0):
            raise ValueError(f"`focal_length` must be a finite number of pixels greater than 0, got {focal_length}")
    if depth_range is not None:
        processor.get_depth_range(depth_range)  # an unknown one is named, whatever is asked for
    images_kwargs = dict(images_kwargs)
    asked = images_kwargs.pop("scale", None)
    scale = processor.get_scale(focal_length, depth_range)
    if scale is not None:
        images_kwargs["scale"] = scale * float(processor.image_processor.scale if asked is None else asked)
    elif asked is not None:
        images_kwargs["scale"] = float(asked)
    return images_kwargs


def _plain_boxes(box):
    """A box, or a list of boxes, of arrays or tensors as lists of numbers."""
    if box is None or hasattr(box, "tolist"):
        return None if box is None else box.tolist()
    return [entry.tolist() if hasattr(entry, "tolist") else entry for entry in box]


def _is_one_box(box) -> bool:
    return box is not None and len(box) > 0 and isinstance(box[0], (int, float))


def check_box(box, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """`box` clipped to an image of `(width, height)` pixels, or a `ValueError` if it has no area there."""
    values = tuple(float(value) for value in box)
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"`box` must be (x0, y0, x1, y1) in pixels, got {tuple(box)}")
    width, height = image_size
    x0, x1 = (min(max(value, 0.0), float(width)) for value in values[0::2])
    y0, y1 = (min(max(value, 0.0), float(height)) for value in values[1::2])
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"`box` must have x0 < x1 and y0 < y1 within an image of {width}x{height}, got {values}")
    return x0, y0, x1, y1


def crop_box(
    image: PIL.Image.Image, box: tuple[float, float, float, float], short_edge: int, padding: float = 1.2
) -> tuple[PIL.Image.Image, tuple[int, int, int, int]]:
    """Draw `box` with a line of 1 px, cut out `padding` times its size and resize the short edge (paper, decoding); of
    a long thin one less, to no more than 16 times the pixels of a square one.

    Returns:
        the crop, and its place (x0, y0, x1, y1) in whole pixels of the image.
    """
    x0, y0, x1, y1 = box
    drawn = image.copy()
    corners = [int(x0), int(y0), max(int(x0), math.ceil(x1) - 1), max(int(y0), math.ceil(y1) - 1)]
    PIL.ImageDraw.Draw(drawn).rectangle(corners, outline=(255, 0, 0), width=1)
    grow_x, grow_y = (padding - 1) / 2 * (x1 - x0), (padding - 1) / 2 * (y1 - y0)
    place = (
        max(0, math.floor(x0 - grow_x)),
        max(0, math.floor(y0 - grow_y)),
        min(image.width, math.ceil(x1 + grow_x)),
        min(image.height, math.ceil(y1 + grow_y)),
    )
    width, height = place[2] - place[0], place[3] - place[1]
    scale = min(short_edge / min(width, height), 4 * short_edge / math.sqrt(width * height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return drawn.crop(place).resize(size, PIL.Image.Resampling.BILINEAR), place


def _length_groups(lengths: list[int], waste: float) -> list[list[int]]:
    """Indices grouped so that filling a group up to its longest adds at most `waste` of its own length."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and waste > 0:
            together = groups[-1] + [index]
            filled = lengths[together[0]] * len(together)
            if filled <= (1 + waste) * sum(lengths[i] for i in together):
                groups[-1] = together
                continue
        groups.append([index])
    return groups


def label_colors(count: int) -> np.ndarray:
    """`uint8 [count, 3]` colours that differ well from their neighbours, the same in every call."""
    hue = (np.arange(count) * 0.61803398875) % 1
    value = 0.95 - 0.35 * ((np.arange(count) // 8) % 2)
    saturation = 0.75 - 0.3 * ((np.arange(count) // 4) % 2)
    channels = (hue[:, None] * 6 + np.array([0, 4, 2])) % 6
    rgb = np.clip(np.abs(channels - 3) - 1, 0, 1)
    return np.round(255 * value[:, None] * (1 - saturation[:, None] * (1 - rgb))).astype(np.uint8)


def colorize_depth(depth: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Metres `[height, width]` to `uint8 [height, width, 3]`: near is bright yellow, far is dark violet.

    Args:
        depth: metres.
        low, high: ends of the scale; the map's own where left out.
    """
    low = float(depth.min()) if low is None else low
    high = float(depth.max()) if high is None else high
    position = np.clip((high - depth) / max(high - low, 1e-6), 0, 1)
    anchors = np.array([[10, 7, 34], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)
    at = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(position, at, anchors[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def _with_names(picture: PIL.Image.Image, rows: list[tuple[str, np.ndarray]]) -> PIL.Image.Image:
    """The picture with a legend at its right, in as many columns as its height asks for."""
    step = 18
    per_column = max(1, picture.height // step)
    columns = [rows[start : start + per_column] for start in range(0, len(rows), per_column)]
    font = PIL.ImageFont.load_default()
    widths = [28 + max(int(font.getlength(name)) for name, _ in column) for column in columns]
    sheet = PIL.Image.new("RGB", (picture.width + sum(widths), max(picture.height, step)), "white")
    sheet.paste(picture)
    draw, left = PIL.ImageDraw.Draw(sheet), picture.width + 6
    for column, width in zip(columns, widths, strict=True):
        for place, (name, color) in enumerate(column):
            top = place * step + 2
            draw.rectangle([left, top, left + 12, top + 12], fill=tuple(int(c) for c in color), outline="black")
            draw.text((left + 18, top + 1), name, fill="black", font=font)
        left += width
    return sheet


def _with_scale(picture: PIL.Image.Image, low: float, high: float) -> PIL.Image.Image:
    """The picture of a depth map with its scale in metres at the right."""
    height = max(picture.height, 14)
    sheet = PIL.Image.new("RGB", (picture.width + 74, height), "white")
    sheet.paste(picture)
    ramp = np.linspace(low, high, height)[:, None].repeat(16, axis=1)
    sheet.paste(PIL.Image.fromarray(colorize_depth(ramp, low, high)), (picture.width + 6, 0))
    draw = PIL.ImageDraw.Draw(sheet)
    count = max(2, min(6, height // 24))
    for place in range(count):
        top = place * (height - 1) / (count - 1)
        metres = low + (high - low) * place / (count - 1)
        draw.text((picture.width + 27, min(max(0, top - 6), height - 12)), f"{metres:.2f} m", fill="black")
    return sheet


__all__ = ["DensePrediction", "DensePredictionMixin", "EncodedImage"]
