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
"""Other looks of things: materials by what they are made of, and meshes that are bent, mirrored, painted anew, or put
together from two."""

from dataclasses import dataclass, replace

import numpy as np
from catalogue import Mesh, Model, load_mesh
from layout import Paint


# Colours (lowest and highest value, spread of hues), patterns, and their scale in metres.
KINDS: dict[str, tuple] = {
    "wood": ((0.03, 0.5), 0.0, ("wood", "wood", "planks", "plain"), (0.05, 0.3)),
    "plain": ((0.03, 0.8), 0.25, ("plain", "plain", "concrete"), (0.1, 0.5)),
    "light": ((0.55, 0.9), 0.06, ("plain", "plain", "plain", "concrete"), (0.1, 0.5)),
    "dark": ((0.01, 0.08), 0.1, ("plain",), (0.1, 0.5)),
    "vivid": ((0.05, 0.5), 0.9, ("plain", "plain", "blotches", "stripes"), (0.05, 0.3)),
    "metal": ((0.1, 0.6), 0.03, ("plain",), (0.1, 0.5)),
    "stone": ((0.1, 0.7), 0.1, ("marble", "terrazzo", "concrete"), (0.1, 0.6)),
    "leaf": ((0.03, 0.25), 0.15, ("plain", "noise"), (0.03, 0.1)),
    "picture": ((0.05, 0.7), 0.8, ("abstract", "blotches", "ramp"), (0.05, 0.3)),
    "fabric": (
        (0.05, 0.7), 0.45, ("plain", "weave", "stripes", "checks", "plaid", "dots", "damask", "carpet", "zigzag"),
        (0.03, 0.2),
    ),
}  # fmt: skip
WOOD, LEAF = np.array([1.0, 0.58, 0.28]), np.array([0.45, 1.0, 0.25])
# Where two models of a class can be cut, as a share of their height, and be put together.
CUTS = {"table": 0.86, "plant": 0.3, "lamp": 0.62}
STILL = ("window", "door", "picture", "rug", "screen", "person")  # they are bent by nobody


def random_color(rng, low: float, high: float, spread: float) -> tuple[float, float, float]:
    """A linear colour, as often dark as bright to the eye."""
    value = rng.uniform(low**0.45, high**0.45) ** (1 / 0.45)
    tint = rng.normal(0, spread, 3)
    return tuple(float(channel) for channel in np.clip(value * np.exp(tint - tint.mean()), 0.01, 0.93))


def random_paint(rng, kind: str) -> Paint:
    """A paint of one of `KINDS`."""
    (low, high), spread, patterns, scales = KINDS[kind]
    base = random_color(rng, low, high, spread)
    if kind in ("wood", "leaf"):
        tone = WOOD ** rng.uniform(0.3, 1.3) if kind == "wood" else LEAF ** rng.uniform(0.5, 1.2)
        base = tuple(float(channel) for channel in np.clip(np.array(base) * tone * 1.4, 0.01, 0.9))
    pattern = str(rng.choice(patterns))
    if pattern in ("plain", "concrete", "wood", "planks", "marble") or rng.random() < 0.3:
        factor = rng.uniform(0.45, 0.95)
        accent = tuple(float(channel * factor) for channel in base)
    else:
        accent = random_color(rng, low, high, spread)
    return Paint(base, accent, pattern, float(np.exp(rng.uniform(*np.log(scales)))), int(rng.integers(1 << 30)))


def random_gloss(rng) -> tuple[float, float]:
    """Reflectance head-on and roughness of a material: most don't shine."""
    if rng.random() < 0.72:
        return 0.0, 0.0
    return float(rng.choice([0.03, 0.05, 0.3], p=[0.6, 0.3, 0.1])), float(rng.uniform(0, 0.1))


@dataclass(frozen=True)
class Change:
    """What becomes of the mesh of a thing; all of it follows from the seed. Its box stays what it was.

    Args:
        seed: of the change.
        label: class of the thing.
        strength: in [0, 1], of bends and of how much is painted anew.
        partner: a model of the same class that may lend its upper part, or `None`.
        donors: models whose textures it may get.
    """

    seed: int
    label: str
    strength: float
    partner: Model | None = None
    donors: tuple[Model, ...] = ()

    def __call__(self, mesh: Mesh, size: tuple[float, float, float]) -> Mesh:
        """The changed mesh, of a box of 1 x 1 x 1 as before."""
        rng = np.random.default_rng(self.seed)
        if self.label == "plant":  # whose leaves have two sides
            mesh = without_doubles(mesh)
        other = None if self.partner is None else load_mesh(self.partner)
        if other is not None and self.label in CUTS:
            mesh = put_together(mesh, other, CUTS[self.label])
        if rng.random() < 0.5:
            mesh = mirrored(mesh)
        if self.label not in STILL:
            taper = rng.normal(0, 0.12) * self.strength
            bend = 0.0 if self.label in ("table", "cabinet", "shelf") else rng.normal(0, 0.08) * self.strength
            mesh = bent(mesh, float(np.clip(taper, -0.3, 0.3)), float(np.clip(bend, -0.2, 0.2)))
        if self.label not in ("plant", "person"):
            mesh = painted_anew(mesh, rng, self.strength, self.donors)
        return mesh


def without_doubles(mesh: Mesh) -> Mesh:
    """Without triangles that lie where another one lies: which of them a ray meets would be left to chance."""
    corners = np.round(mesh.vertices.reshape(-1, 3) * 4096).astype(np.int64)
    keys = np.sort((corners @ np.array([1, 8209, 8209**2])).reshape(-1, 3), axis=1)
    _, kept = np.unique(keys @ np.array([1, 1000003, 998244353]), return_index=True)  # one number is quicker than rows
    return mesh if len(kept) == len(keys) else _only(mesh, np.sort(kept))


def _only(mesh: Mesh, kept: np.ndarray) -> Mesh:
    return replace(
        mesh, vertices=mesh.vertices[kept], normals=mesh.normals[kept], uv=mesh.uv[kept], material=mesh.material[kept]
    )


def put_together(lower: Mesh, upper: Mesh, cut: float) -> Mesh:
    """What of one mesh lies below a height and what of the other lies above; either alone where the cut leaves one of
    them without triangles."""
    below = lower.vertices[:, :, 2].mean(axis=1) < cut
    above = upper.vertices[:, :, 2].mean(axis=1) >= cut
    if not below.any() or not above.any():
        return lower
    first, second = _only(lower, below), _only(upper, above)
    paints = [[*(mesh.paints or [None] * len(mesh.colors))] for mesh in (first, second)]
    gloss = [np.zeros((len(m.colors), 2), np.float32) if m.gloss is None else m.gloss for m in (first, second)]
    joined = Mesh(
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("vertices", "normals", "uv")),
        np.concatenate([first.material, second.material + len(first.colors)]),
        np.concatenate([first.colors, second.colors]), np.concatenate([first.opacity, second.opacity]),
        [*first.textures, *second.textures], paints[0] + paints[1], np.concatenate(gloss),
    )  # fmt: skip
    return _fitted(joined)


def mirrored(mesh: Mesh) -> Mesh:
    """Left and right changed."""
    flip = np.array([-1, 1, 1], dtype=np.float32)
    order = [0, 2, 1]
    return replace(
        mesh, vertices=(mesh.vertices * flip)[:, order], normals=(mesh.normals * flip)[:, order],
        uv=mesh.uv[:, order],
    )  # fmt: skip


def bent(mesh: Mesh, taper: float, bend: float) -> Mesh:
    """Wider at the top by `taper` and narrower at the foot, and leaning to a side by `bend`, shares of the width."""
    x, y, z = (mesh.vertices[..., k] for k in range(3))
    scale, lean = 1 + taper * (z - 0.5), bend * z * z
    vertices = np.stack([x * scale + lean, y * scale, z], axis=-1)
    # Normals go with the inverse of the transposed Jacobian.
    nx, ny, nz = (mesh.normals[..., k] for k in range(3))
    along = nx / scale * (x * taper + 2 * bend * z) + ny / scale * y * taper
    normals = np.stack([nx / scale, ny / scale, nz - along], axis=-1)
    return _fitted(replace(mesh, vertices=vertices.astype(np.float32), normals=normals.astype(np.float32)))


def _fitted(mesh: Mesh) -> Mesh:
    """In a box of 1 x 1 x 1 again."""
    corners = mesh.vertices.reshape(-1, 3)
    low, high = corners.min(axis=0), corners.max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], dtype=np.float32)
    return replace(mesh, vertices=(mesh.vertices - middle) / extent, normals=mesh.normals * extent)


def painted_anew(mesh: Mesh, rng, strength: float, donors: tuple[Model, ...]) -> Mesh:
    """Materials of its own, of the kinds of `KINDS`, or with the textures of another model."""
    count = len(mesh.colors)
    paints, textures = list(mesh.paints) or [None] * count, list(mesh.textures)
    gloss = np.zeros((count, 2), dtype=np.float32) if mesh.gloss is None else mesh.gloss.copy()
    lent = []
    for donor in donors:
        other = load_mesh(donor)
        lent += [] if other is None else [pixels for pixels in other.textures if pixels is not None]
    theme = str(rng.choice(["wood", "plain", "light", "vivid", "fabric", "metal", "stone"]))
    for place in range(count):
        if mesh.opacity[place] < 1 or rng.random() > 0.65 * strength:
            continue
        gloss[place] = random_gloss(rng)
        if lent and mesh.textures[place] is not None and rng.random() < 0.4:
            textures[place] = lent[int(rng.integers(len(lent)))]  # it goes where the old one went
            continue
        kind = theme if rng.random() < 0.6 else str(rng.choice(list(KINDS)))
        paints[place], textures[place] = random_paint(rng, kind), None
    return replace(mesh, textures=textures, paints=paints, gloss=gloss)
