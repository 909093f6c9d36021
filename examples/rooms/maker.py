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
"""Parts of made furniture, boxes, tubes and cushions, and the mesh of all of them; see `carpentry.py`."""

import math

import numpy as np
from catalogue import MadeModel, Mesh
from layout import Paint
from looks import random_gloss, random_paint


class Maker:
    """Collects the parts of one piece; lengths are metres."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.vertices, self.normals, self.material = [], [], []
        self.paints: list[Paint] = []
        self.gloss: list[tuple[float, float]] = []
        self.opacity: list[float] = []

    def paint(self, *kinds: str, opacity: float = 1.0) -> int:
        """A new material of one of the kinds of `looks.KINDS`."""
        self.paints.append(random_paint(self.rng, str(self.rng.choice(kinds))))
        self.gloss.append(random_gloss(self.rng))
        self.opacity.append(opacity)
        return len(self.paints) - 1

    def same_or(self, material: int, *kinds: str) -> int:
        """The same material, more often than another one."""
        return material if self.rng.random() < 0.6 else self.paint(*kinds)

    def _triangles(self, vertices: np.ndarray, normals: np.ndarray, material: int) -> None:
        self.vertices.append(vertices)
        self.normals.append(normals)
        self.material.append(np.full(len(vertices), material))

    def box(self, low, high, material: int) -> None:
        low, high = np.minimum(low, high), np.maximum(low, high)
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (high - low) + low
        sides = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
        facing = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], dtype=float)
        triangles = np.concatenate([sides[:, [0, 1, 2]], sides[:, [0, 2, 3]]])
        normals = np.repeat(np.concatenate([facing, facing])[:, None], 3, axis=1)
        self._triangles(corners[triangles], normals, material)

    def surface(self, points: np.ndarray, normals: np.ndarray, material: int) -> None:
        """A surface of points `[n, m, 3]` with normals likewise."""
        quads = [values[i : i + points.shape[0] - 1, j : j + points.shape[1] - 1].reshape(-1, 3)
                 for values in (points, normals) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]  # fmt: skip
        for order in ((0, 1, 2), (0, 2, 3)):
            corners, facing = (np.stack([quads[start + k] for k in order], axis=1) for start in (0, 4))
            self._triangles(corners, facing, material)

    def tube(self, low, high, radius: float, material: int, end_radius: float | None = None, count: int = 14) -> None:
        """A cylinder or cone from `low` to `high`, closed."""
        low, high = np.array(low, dtype=float), np.array(high, dtype=float)
        end_radius = radius if end_radius is None else end_radius
        way = (high - low) / max(np.linalg.norm(high - low), 1e-9)
        aside = np.cross(way, (1.0, 0, 0) if abs(way[0]) < 0.7 else (0, 1.0, 0))
        aside /= np.linalg.norm(aside)
        turn = np.linspace(0, 2 * math.pi, count + 1)[:, None]
        ring = np.cos(turn) * aside + np.sin(turn) * np.cross(way, aside)
        rows = [low + 0 * ring, low + ring * radius, high + ring * end_radius, high + 0 * ring]
        for k, normals in enumerate((-way + 0 * ring, ring, way + 0 * ring)):
            self.surface(np.stack(rows[k : k + 2], axis=1), np.stack([normals, normals], axis=1), material)

    def cushion(self, low, high, material: int, hardness: float = 4.0, count: int = 9) -> None:
        """A box with round edges: a ball at a hardness of 2, a box at a high one."""
        low, high = np.minimum(low, high), np.maximum(low, high)
        power = 2.0 / hardness
        around, up = np.meshgrid(
            np.linspace(-math.pi, math.pi, 2 * count), np.linspace(-math.pi / 2, math.pi / 2, count), indexing="ij"
        )

        def curve(values, exponent):
            return np.sign(values) * np.abs(values) ** exponent

        unit = [
            np.stack([curve(np.cos(up), p) * curve(np.cos(around), p), curve(np.cos(up), p) * curve(np.sin(around), p),
                      curve(np.sin(up), p)], axis=-1) for p in (power, 2 - power)
        ]  # fmt: skip
        half = np.maximum((np.array(high) - low) / 2, 1e-4)
        normals = unit[1] / half
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
        self.surface(unit[0] * half + (np.array(high) + low) / 2, normals, material)

    def legs(self, width: float, depth: float, height: float, material: int, inset: float = 0.03) -> None:
        """Four of them, straight or splayed, round or square."""
        rng = self.rng
        thick, splay = rng.uniform(0.01, 0.028), rng.choice([0.0, 0.0, rng.uniform(0, 0.06)])
        is_round = rng.random() < 0.5
        for x in (-1, 1):
            for y in (-1, 1):
                top = np.array([x * (width / 2 - inset - thick), y * (depth / 2 - inset - thick), height])
                foot = top + (x * min(splay, inset), y * min(splay, inset), -height)
                if is_round:
                    self.tube(foot, top, thick * 0.8, material, thick, count=8)
                else:
                    self.box(foot - (thick, thick, 0), top + (thick, thick, 0), material)

    def finish(self, label: str, name: str, top: float | None = None, elevation: float = 0.0) -> MadeModel:
        """The model: its box is that of what was collected, its mesh is scaled to 1 x 1 x 1."""
        vertices = np.concatenate(self.vertices).astype(np.float32)
        normals = np.concatenate(self.normals).astype(np.float32)
        low, high = vertices.reshape(-1, 3).min(axis=0), vertices.reshape(-1, 3).max(axis=0)
        size = np.maximum(high - low, 1e-3)
        middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], dtype=np.float32)
        count = len(self.paints)
        mesh = Mesh(
            (vertices - middle) / size, normals * size, np.zeros((len(vertices), 3, 2), dtype=np.float32),
            np.concatenate(self.material).astype(np.int32), np.full((count, 3), 0.7, dtype=np.float32),
            np.array(self.opacity, dtype=np.float32), [None] * count, list(self.paints),
            np.array(self.gloss, dtype=np.float32),
        )  # fmt: skip
        extent = tuple(float(edge) for edge in size)
        return MadeModel(
            f"made {name}", name, label, extent, None if top is None else float(top), elevation,
            "", "", "", "", None, mesh,
        )  # fmt: skip
