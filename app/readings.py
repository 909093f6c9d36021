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
"""What the page shows beside an image: a legend, and what is at each place of it."""

import base64
import html
import json
import zlib

import numpy as np

from densemllm.task_base_densemllm import PixelWords

from .limits import MAX_READING


MAX_ROWS = 64  # of a legend
STOPS, TICKS = 24, 5  # of a scale
MAX_WORDS = 2**16


def legend(words: PixelWords, colors: np.ndarray, is_drawn: np.ndarray) -> str:
    """The colours of a map and what they mean, as HTML: a scale where the words count, else a row a word, the largest
    area first.

    Args:
        words: of the map.
        colors: `uint8 [height, width, 3]`, the map as it is drawn.
        is_drawn: `bool [height, width]`, where it is laid over the image. Words of other places get no colour.
    """
    count = len(words.words)
    areas = np.bincount(words.places.ravel(), minlength=count)
    sums = [np.bincount(words.places.ravel(), channel.ravel(), count) for channel in np.moveaxis(colors, -1, 0)]
    means = (np.stack(sums, axis=-1) / np.maximum(areas, 1)[:, None]).round().astype(int)
    if words.values is not None:
        return _scale(words, means)
    drawn = np.bincount(words.places.ravel(), is_drawn.ravel(), count) > 0
    order = [place for place in np.argsort(-areas, kind="stable").tolist() if areas[place]]
    fills = [_css(color) if is_shown else "none" for color, is_shown in zip(means, drawn, strict=True)]
    rows = [
        f'<li><i style="background:{fills[place]}"></i>{html.escape(words.words[place])} '
        f"<small>{_percent(areas[place] / words.places.size)}</small></li>"
        for place in order[:MAX_ROWS]
    ]
    more = f"<li>and {len(order) - MAX_ROWS} more</li>" if len(order) > MAX_ROWS else ""
    return f'<ul class="legend">{"".join(rows)}{more}</ul>'


def _scale(words: PixelWords, colors: np.ndarray) -> str:
    """A bar from the least to the greatest of the values, and the words of some between them."""
    low, high = float(words.values[0]), float(words.values[-1])
    at = (np.asarray(words.values, np.float64) - low) / max(high - low, 1e-6)

    def nearest(share: float) -> int:
        return int(np.abs(at - share).argmin())

    stops = dict.fromkeys(nearest(share) for share in np.linspace(0, 1, STOPS))
    ticks = dict.fromkeys(nearest(share) for share in np.linspace(0, 1, TICKS))
    ramp = ", ".join(f"{_css(colors[place])} {100 * at[place]:.1f}%" for place in stops)
    ramp = ramp if len(stops) > 1 else f"{ramp}, {ramp}"
    marks = "".join(f"<span>{html.escape(words.words[place])}</span>" for place in ticks)
    return f'<div class="scale"><div style="background:linear-gradient(90deg, {ramp})"></div><p>{marks}</p></div>'


def thin_out(words: PixelWords) -> PixelWords:
    """Every second, third... pixel of a map, so that few enough are left; `places` as small integers."""
    height, width = words.places.shape
    step = 1
    while -(-height // step) * -(-width // step) > MAX_READING:
        step += 1
    places = words.places[step // 2 :: step, step // 2 :: step] if step > 1 else words.places
    kind = np.uint16 if len(words.words) <= MAX_WORDS else np.uint32
    return PixelWords(places.astype(kind), words.words, words.values)


def reading(hint: str, maps: dict[str, PixelWords]) -> str:
    """HTML that has what is at each place, for `reading.js`, which shows it.

    Args:
        hint: what is shown as long as nobody points at the image.
        maps: by the name that stands before their words; those of [`thin_out`].
    """
    rows = []
    for name, words in maps.items():
        kept, places = np.unique(words.places, return_inverse=True)  # few of a thousand values may be left
        packed = zlib.compress(places.astype("<u4" if len(kept) > MAX_WORDS else "<u2").tobytes(), 6)
        rows.append(
            {
                "name": name, "height": words.places.shape[0], "width": words.places.shape[1],
                "bytes": 4 if len(kept) > MAX_WORDS else 2, "words": [words.words[place] for place in kept.tolist()],
                "places": base64.b64encode(packed).decode("ascii"),
            }
        )  # fmt: skip
    data = f' data-maps="{html.escape(json.dumps(rows))}"' if rows else ""
    return f'<p class="reading" aria-live="polite"{data} data-hint="{html.escape(hint)}">{html.escape(hint)}</p>'


def message(text: str, is_error: bool = False) -> str:
    """A sentence to the visitor, as HTML."""
    return f'<p class="said{" wrong" if is_error else ""}" role="status">{html.escape(text)}</p>' if text else ""


def _css(color: np.ndarray) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in color)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "&lt; 0.1 %"
