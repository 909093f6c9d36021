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

"""What cameras do to an image: augmentation for images that were rendered, or that come from one camera."""

import io
import math
from collections.abc import Callable

import numpy as np
import PIL.Image


GAMMA = 2.2
REFERENCE_EDGE = 256  # pixels: widths of blurs are meant for an image of this size, and grow with it


def apply_camera_effects(
    image: PIL.Image.Image, strength: float, rng: np.random.Generator, keep_colors: bool = False
) -> PIL.Image.Image:
    """A copy of an image as another camera might have taken it: exposure, white balance, vignetting, blur of motion or
    defocus, noise, tone, JPEG, and at times no colours. Each effect comes or stays away on its own; nothing moves, so
    that the maps of the image stay right.

    Args:
        image: RGB.
        strength: in [0, 1]: of every effect. At 1 exposure changes by up to 1.5 stops, light falls off by up to 0.6 at
            the corners, blurs are up to 6 pixels wide in an image of 256, JPEG has a quality of 25 at least, and one
            image in seven is grey.
        rng: what is drawn from.
        keep_colors: leave hues as they are, as somebody speaks of them: no white balance, and never grey.

    Returns:
        an RGB image of the same size.
    """
    light = (np.asarray(image, dtype=np.float32) / 255) ** GAMMA
    for effect, probability, changes_hues in _ON_LIGHT:
        if rng.random() < probability and not (changes_hues and keep_colors):
            light = effect(light, strength, rng)
    pixels = np.clip(light, 0, 1) ** np.float32(1 / GAMMA)
    changed = PIL.Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.14 * strength and not keep_colors:
        changed = changed.convert("L").convert("RGB")
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        changed.save(buffer, "JPEG", quality=round(95 - strength * rng.uniform(0, 70)))
        changed = PIL.Image.open(buffer).convert("RGB")
    return changed


# ---- effects on linear light, float32 [height, width, 3] ----


def _expose(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return light * np.float32(2 ** (strength * rng.uniform(-1.5, 1.5)))


def _balance(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    gains = rng.normal(0, 0.15 * strength, 3)
    return light * np.exp(gains - gains.mean()).astype(np.float32)


def _vignette(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    height, width = light.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return light * (1 - strength * rng.uniform(0, 0.6) * (x**2 + y**2) / 2).astype(np.float32)[..., None]


def _blur(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Of motion or defocus. Light adds up, not sRGB: bright things grow."""
    factor = max(light.shape[:2]) / REFERENCE_EDGE
    if rng.random() < 0.5:
        reach = strength * rng.uniform(0, 3) * factor
        turn, steps = rng.uniform(0, math.pi), 2 * math.ceil(reach) + 1
        places = [np.rint(share * reach * np.array([math.sin(turn), math.cos(turn)])).astype(int)
                  for share in np.linspace(-1, 1, steps)]  # fmt: skip
    else:
        radius = strength * rng.uniform(0, 1.8) * factor
        around = range(-math.ceil(radius), math.ceil(radius) + 1)
        places = [np.array([y, x]) for y in around for x in around if y * y + x * x <= radius * radius + 0.25]
    most = int(np.abs(places).max())
    padded = np.pad(light, ((most, most), (most, most), (0, 0)), mode="edge")
    height, width = light.shape[:2]
    shifted = (padded[most + y : most + y + height, most + x : most + x + width] for y, x in places)
    return sum(shifted, np.zeros_like(light)) / np.float32(len(places))


def _add_noise(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Of photons, which grows with the root of the light, and of the sensor."""
    shot, read = strength * rng.uniform(0, 0.06), strength * rng.uniform(0, 0.015)
    spread = np.sqrt(shot**2 * np.clip(light, 0, 1) + read**2).astype(np.float32)
    return light + spread * rng.standard_normal(light.shape, dtype=np.float32)


def _tone(light: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast, and haze that lifts what is black."""
    haze = np.float32(strength * rng.uniform(0, 0.05))
    power = np.float32(math.exp(strength * rng.normal(0, 0.2)))
    return np.clip(light, 0, None) ** power * (1 - haze) + haze


# In the order of a camera: lens, sensor, development. (effect, its probability, whether it changes hues)
_ON_LIGHT: tuple[tuple[Callable[..., np.ndarray], float, bool], ...] = (
    (_vignette, 0.4, False),
    (_blur, 0.4, False),
    (_expose, 0.6, False),
    (_add_noise, 0.5, False),
    (_balance, 0.6, True),
    (_tone, 0.4, False),
)


__all__ = ["apply_camera_effects"]
