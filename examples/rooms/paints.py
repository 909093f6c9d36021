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
"""Procedural surfaces: the colours of a [`Paint`] at places of a surface, float32 and linear RGB."""

import numpy as np
from layout import Paint


def _hash(x, y, seed: int):
    """Pseudo-random float32 in [0, 1) for integer lattice points."""
    mixed = (x.astype(np.int64) * 374761393 + y.astype(np.int64) * 668265263 + seed * 2246822519) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / 65536


def _noise(uv, seed: int):
    """Smooth value noise in [0, 1) on the unit lattice."""
    cell = np.floor(uv)
    part = uv - cell
    part = part * part * (3 - 2 * part)
    x, y = cell[:, 0], cell[:, 1]
    low = _hash(x, y, seed) * (1 - part[:, 0]) + _hash(x + 1, y, seed) * part[:, 0]
    high = _hash(x, y + 1, seed) * (1 - part[:, 0]) + _hash(x + 1, y + 1, seed) * part[:, 0]
    return low * (1 - part[:, 1]) + high * part[:, 1]


def painted(paint: Paint, uv: np.ndarray) -> np.ndarray:
    """Linear colour of a paint at places in metres: float32 `[n, 3]` of float32 `[n, 2]`."""
    base, accent = np.array(paint.base, dtype=np.float32), np.array(paint.accent, dtype=np.float32)
    scaled = uv / np.float32(paint.scale)
    if paint.pattern == "planks":
        plank = np.floor(scaled[:, 0])
        board = np.floor(scaled[:, 1] / 8 + _hash(plank, plank * 0, paint.seed))
        tone = _hash(plank, board, paint.seed + 1)
        grain = _noise(np.stack([scaled[:, 0] * 6, scaled[:, 1] * 0.7 + plank * 17], axis=1), paint.seed)
        share = 0.55 * tone + 0.45 * grain
        share = np.where(scaled[:, 0] - plank < 0.03, 1.3, share)
    elif paint.pattern == "tiles":
        inside = np.minimum(scaled % 1, 1 - scaled % 1).min(axis=1)
        cell = np.floor(scaled)
        share = np.where(inside < 0.02, 1.0, 0.25 * _hash(cell[:, 0], cell[:, 1], paint.seed))
    elif paint.pattern == "checks":
        share = (np.floor(scaled).sum(axis=1) % 2).astype(np.float32)
    elif paint.pattern == "stripes":
        share = (scaled[:, 0] % 1 < 0.5).astype(np.float32)
    elif paint.pattern == "noise":
        share = 0.6 * _noise(scaled, paint.seed) + 0.4 * _noise(scaled * 3.1, paint.seed + 1)
    elif paint.pattern == "abstract":
        third = np.array(paint.base[::-1], dtype=np.float32)
        share = (_noise(scaled * 0.8, paint.seed) > 0.5).astype(np.float32)
        other = (_noise(scaled * 0.5 + 9, paint.seed + 1) > 0.6)[:, None]
        return np.where(other, third, base + (accent - base) * share[:, None])
    elif paint.pattern == "scene":  # a horizon with something round above it
        share = (uv[:, 1] / max(float(uv[:, 1].max()), 1e-6) > 0.45 + 0.2 * _noise(scaled, paint.seed)).astype(
            np.float32
        )
    elif paint.pattern == "view":  # sky over treetops
        share = (uv[:, 1] / np.float32(paint.scale) < 0.3 + 0.25 * _noise(uv * 4, paint.seed)).astype(np.float32)
        share *= 0.6 + 0.4 * _noise(uv * 25, paint.seed + 1)
    elif paint.pattern in PATTERNS:
        share = np.clip(PATTERNS[paint.pattern](scaled, paint.seed), -0.3, 1.3)
    else:
        share = 0.15 * _noise(scaled, paint.seed)
    return base + (accent - base) * share[:, None].astype(np.float32)


# ---- patterns of varied rooms: the share of the accent at places in units of the paint's scale ----


def _octaves(uv, seed: int, count: int = 4):
    """Noise of several scales in [0, 1)."""
    total = sum(_noise(uv * 2**k, seed + k) / 2**k for k in range(count))
    return total / sum(0.5**k for k in range(count))


def _line(values, width: float):
    """1 within `width` of an integer, else 0."""
    return (np.abs(values - np.round(values)) < width / 2).astype(np.float32)


def _bricks(uv, seed: int):
    row = np.floor(uv[:, 1] * 2)
    along = uv[:, 0] + 0.5 * (row % 2)
    joint = np.maximum(_line(uv[:, 1] * 2, 0.1), _line(along, 0.05))
    return np.where(joint > 0, 1.1, 0.5 * _hash(np.floor(along), row, seed) + 0.2 * _noise(uv * 9, seed))


def _herringbone(uv, seed: int):
    """Boards of 1 x 4 that meet at right angles."""
    x, y = (uv[:, 0] + uv[:, 1]) * 0.7071, (uv[:, 1] - uv[:, 0]) * 0.7071
    i, j = np.floor(x), np.floor(y)
    lies = (i - j) % 8 < 4  # on the lattice, four cells lie along x, four along y
    first = np.where(lies, i - (i - j) % 8, i)
    second = np.where(lies, j, j - (3 - (i - j) % 4))
    tone = _hash(first, second + 1000 * lies, seed)
    along, across = np.where(lies, x, y), np.where(lies, y, x)
    grain = _noise(np.stack([across * 7, along * 0.8 + tone * 50], axis=1), seed + 1)
    edge = _line(across, 0.06)
    return np.where(edge > 0, 1.2, 0.6 * tone + 0.4 * grain)


def _parquet(uv, seed: int):
    """Squares of four strips, each square turned against its neighbours."""
    cell = np.floor(uv)
    turned = cell.sum(axis=1) % 2 == 0
    part = uv - cell
    across, along = np.where(turned, part[:, 0], part[:, 1]), np.where(turned, part[:, 1], part[:, 0])
    strip = np.floor(across * 4)
    tone = _hash(cell[:, 0] * 7 + strip, cell[:, 1] * 5, seed)
    grain = _noise(np.stack([across * 30, along * 3 + tone * 40], axis=1), seed + 1)
    return np.where(_line(across * 4, 0.05) > 0, 1.1, 0.6 * tone + 0.4 * grain)


def _hexagons(uv, seed: int):
    """Six-sided tiles with joints."""
    step = np.array([1.0, 1.7320508], dtype=np.float32)
    first = np.floor(uv / step) + 0.5
    second = np.floor(uv / step + 0.5)
    a, b = uv - first * step, uv - second * step
    nearer = ((a**2).sum(axis=1) < (b**2).sum(axis=1))[:, None]
    part = np.abs(np.where(nearer, a, b))
    cell = np.where(nearer, first * 2, second * 2)
    edge = np.maximum(part[:, 0], 0.5 * part[:, 0] + 0.8660254 * part[:, 1])
    return np.where(edge > 0.47, 1.1, 0.35 * _hash(np.round(cell[:, 0]), np.round(cell[:, 1]), seed))


def _marble(uv, seed: int):
    vein = uv[:, 0] + uv[:, 1] * 0.4 + 2.2 * _octaves(uv * 0.7, seed)
    return np.abs(np.sin(vein * 3)) ** 6 + 0.25 * _octaves(uv * 2, seed + 9)


def _terrazzo(uv, seed: int):
    cell = np.floor(uv * 4)
    middle = np.stack([_hash(cell[:, 0], cell[:, 1], seed + k) for k in range(2)], axis=1)
    near = ((uv * 4 - cell - 0.2 - 0.6 * middle) ** 2).sum(axis=1) < 0.09 * _hash(cell[:, 0], cell[:, 1], seed + 2)
    return np.where(near, 0.3 + _hash(cell[:, 0], cell[:, 1], seed + 3), 0.1 * _noise(uv * 20, seed))


def _concrete(uv, seed: int):
    return 0.7 * _octaves(uv, seed) + 0.2 * _noise(uv * 40, seed + 7)


def _carpet(uv, seed: int):
    return 0.5 * _noise(uv * 25, seed) + 0.5 * _octaves(uv * 2, seed + 3)


def _weave(uv, seed: int):
    over = (np.floor(uv * 4).sum(axis=1) % 2) * 0.5
    thread = np.abs(np.sin(uv * 4 * np.pi)).min(axis=1)
    return over + 0.3 * thread + 0.2 * _noise(uv * 6, seed)


def _wood(uv, seed: int):
    """Grain along v."""
    bent = uv[:, 0] * 3 + 1.5 * _noise(np.stack([uv[:, 0], uv[:, 1] * 0.3], axis=1), seed)
    rings = 0.5 + 0.5 * np.sin(bent * 6)
    fibre = _noise(np.stack([uv[:, 0] * 45, uv[:, 1] * 1.5], axis=1), seed + 1)
    return 0.55 * rings + 0.45 * fibre


def _panels(uv, seed: int):
    """Vertical boards or grooves."""
    return 1.1 * _line(uv[:, 0], 0.08) + 0.15 * _hash(np.floor(uv[:, 0]), uv[:, 0] * 0, seed)


def _dots(uv, seed: int):
    row = np.floor(uv[:, 1])
    part = np.stack([(uv[:, 0] + 0.5 * (row % 2)) % 1, uv[:, 1] % 1], axis=1) - 0.5
    return ((part**2).sum(axis=1) < 0.05 + 0.06 * _hash(np.array([0.0]), np.array([0.0]), seed)).astype(np.float32)


def _damask(uv, seed: int):
    """A motif that mirrors itself, as wallpapers have it."""
    part = np.abs(uv % 1 - 0.5)
    return (_octaves(part * 5 + seed % 97, seed, 2) > 0.5).astype(np.float32) * 0.8 + 0.1 * _noise(uv * 8, seed)


def _zigzag(uv, seed: int):
    return ((uv[:, 1] + np.abs(uv[:, 0] % 1 - 0.5)) % 0.5 < 0.25).astype(np.float32)


def _blotches(uv, seed: int):
    return (_octaves(uv, seed, 3) > 0.5).astype(np.float32)


def _plaid(uv, seed: int):
    bars = [(uv[:, k] % 1 < 0.35).astype(np.float32) + (uv[:, k] % 1 > 0.85) * 0.5 for k in range(2)]
    return 0.5 * (bars[0] + bars[1])


def _plaster(uv, seed: int):
    """A wall that isn't quite even, with stains."""
    stain = np.clip(_octaves(uv * 0.15, seed, 3) * 2 - 1, 0, 1)
    return 0.2 * _octaves(uv * 3, seed + 4) + 0.5 * stain


def _ramp(uv, seed: int):
    """From one colour to the other over four units of height."""
    return np.clip(uv[:, 1] / 4, 0, 1) + 0.1 * _noise(uv * 3, seed)


def _wainscot(uv, seed: int):
    """Another colour below one unit of height."""
    return (uv[:, 1] < 1).astype(np.float32) + 0.05 * _noise(uv * 20, seed)


PATTERNS = {
    "bricks": _bricks, "herringbone": _herringbone, "parquet": _parquet, "hexagons": _hexagons, "marble": _marble,
    "terrazzo": _terrazzo, "concrete": _concrete, "carpet": _carpet, "weave": _weave, "wood": _wood,
    "panels": _panels, "dots": _dots, "damask": _damask, "zigzag": _zigzag, "blotches": _blotches, "plaid": _plaid,
    "plaster": _plaster, "ramp": _ramp, "wainscot": _wainscot,
}  # fmt: skip
