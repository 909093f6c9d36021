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
"""Ray casting of rooms with Embree: colour with soft shadows and one bounce, and depth, classes and instances that are
exact at the pixels' centres.

Directions and positions are float32 `[n, 3]`; colours are linear RGB until the last step.
"""

import math
from dataclasses import dataclass

import numpy as np
from catalogue import LABEL2ID, load_mesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from layout import Camera, Paint, Room
from paints import painted


FAR = 1e4
OFFSET = 2e-3  # metres by which a ray starts above its surface
WALL_THICKNESS = 0.27  # metres between rooms: more than any window is set into its wall
MOST_REFLECTED = 1.5  # of more, grains would be left
CLEAR = 0.65  # materials of a lower opacity let rays through


@dataclass
class View:
    """One picture of a room; arrays are `[height, width]`."""

    image: np.ndarray  # uint8 [height, width, 3], sRGB
    segmentation: np.ndarray  # uint8, class ids
    depth: np.ndarray  # float32, metres along the optical axis
    instances: np.ndarray  # uint16, place in `Room.things` plus one; 0: floor, walls, ceiling


class Scene:
    """A room as triangles, ready to be looked at from anywhere."""

    def __init__(self, room: Room):
        self.room = room
        self.paints: list[Paint] = []
        self.textures: list[np.ndarray] = []
        self._parts: dict[str, list] = {
            name: []
            for name in (
                "vertices",
                "normals",
                "uv",
                "color",
                "mean_color",
                "opacity",
                "texture",
                "paint",
                "label",
                "thing",
                "gloss",
            )
        }
        self._shell()
        self._building()
        for index, thing in enumerate(room.things):
            if thing.model is not None:
                self._mesh(index, thing)
            elif thing.label == "picture":
                self._box(index, thing)
            else:
                self._panel(index, thing)
        parts = {name: np.concatenate(values) for name, values in self._parts.items()}
        clear = parts["opacity"] < CLEAR
        self.solid = _Triangles(parts, ~clear)
        self.glass = _Triangles(parts, clear) if clear.any() else None

    # ---- triangles ----

    def _append(
        self, vertices, normals, uv, label, thing, color, mean_color, opacity=1.0, texture=-1, paint=-1, gloss=(0, 0)
    ):
        rows = {
            "vertices": vertices, "normals": normals, "uv": uv, "color": color, "mean_color": mean_color,
            "opacity": opacity, "texture": texture, "paint": paint, "label": label, "thing": thing,
            "gloss": gloss,
        }  # fmt: skip
        count = len(vertices)
        for name in ("color", "mean_color"):
            rows[name] = np.broadcast_to(rows[name], (count, 3))
        rows["gloss"] = np.broadcast_to(rows["gloss"], (count, 2))
        for name in ("opacity", "texture", "paint", "label", "thing"):
            rows[name] = np.broadcast_to(rows[name], count)
        kinds = {"texture": np.int32, "paint": np.int32, "label": np.uint8, "thing": np.int32}
        for name, values in rows.items():
            self._parts[name].append(np.asarray(values, dtype=kinds.get(name, np.float32)))

    def _quad(self, corner, along, up, label: int, thing: int, paint: Paint, start=(0.0, 0.0), gloss=(0, 0)) -> None:
        """A rectangle that faces cross(along, up); its texture coordinates are metres from `start`."""
        corner, along, up = (np.asarray(edge, dtype=np.float64) for edge in (corner, along, up))
        points = np.array([corner, corner + along, corner + along + up, corner + up])
        width, height = np.linalg.norm(along), np.linalg.norm(up)
        uv = np.array([[0, 0], [width, 0], [width, height], [0, height]]) + start
        normal = np.cross(along, up) / (width * height)
        order = np.array([[0, 1, 2], [0, 2, 3]])
        self.paints.append(paint)
        mean = (np.array(paint.base) + np.array(paint.accent)) / 2
        self._append(points[order], np.tile(normal, (2, 3, 1)), uv[order], label, thing, 0.7, mean,
                     paint=len(self.paints) - 1, gloss=gloss)  # fmt: skip

    def _shell(self) -> None:
        width, depth, height = self.room.size
        paints = self.room.paints
        floor_gloss = self.room.gloss.get("floor", (0, 0))
        self._quad((0, 0, 0), (width, 0, 0), (0, depth, 0), LABEL2ID["floor"], -1, paints["floor"], gloss=floor_gloss)
        self._quad((0, depth, height), (width, 0, 0), (0, -depth, 0), LABEL2ID["ceiling"], -1, paints["ceiling"])
        corners = ((0, depth), (0, 0), (width, 0), (width, depth))
        edges = ((width, 0), (0, depth), (-width, 0), (0, -depth))
        for wall, (corner, edge) in enumerate(zip(corners, edges, strict=True)):
            holes = [hole for hole in self.room.holes if hole.wall == wall]
            corner, edge = np.array([*corner, 0.0]), np.array([*edge, 0.0])
            self._wall(corner, edge, height, holes, paints[f"wall{wall}"], self.room.gloss.get("wall", (0, 0)))
            for hole in holes:
                self._behind(corner, edge / np.linalg.norm(edge), hole, paints[f"wall{wall}"])

    def _wall(self, corner, edge, height: float, holes: list, paint: Paint, gloss) -> None:
        """A wall without what its holes take out of it."""
        if not holes:
            self._quad(corner, edge, (0, 0, height), LABEL2ID["wall"], -1, paint, gloss=gloss)
            return
        length = float(np.linalg.norm(edge))
        bounds = sorted({0.0, length, *(bound[0] for hole in holes for bound in (hole.low, hole.high))})
        for left, right in zip(bounds[:-1], bounds[1:], strict=True):
            own = [hole for hole in holes if hole.low[0] < (left + right) / 2 < hole.high[0]]
            up = sorted({0.0, height, *(bound[1] for hole in own for bound in (hole.low, hole.high))})
            for low, high in zip(up[:-1], up[1:], strict=True):
                if not any(hole.low[1] < (low + high) / 2 < hole.high[1] for hole in own):
                    start = corner + edge * (left / length) + (0, 0, low)
                    along, label = edge * ((right - left) / length), LABEL2ID["wall"]
                    self._quad(start, along, (0, 0, high - low), label, -1, paint, (left, low), gloss)

    def _behind(self, corner, way, hole, paint: Paint) -> None:
        """The sides of an opening, and the bare room behind it if there is one."""
        out = np.array([-way[1], way[0], 0.0])  # away from the room
        width, height = hole.high[0] - hole.low[0], hole.high[1] - hole.low[1]
        start, up, wall = corner + way * hole.low[0] + (0, 0, hole.low[1]), np.array([0, 0, 1.0]), LABEL2ID["wall"]
        side, depth = way * width, WALL_THICKNESS if hole.is_room else hole.depth
        floor = hole.is_room and hole.low[1] < 0.01
        below = (LABEL2ID["floor"], self.room.paints["floor"]) if floor else (wall, paint)
        self._quad(start, side, out * depth, below[0], -1, below[1])
        self._quad(start + up * height + out * depth, side, -out * depth, wall, -1, paint)
        self._quad(start, out * depth, up * height, wall, -1, paint)
        self._quad(start + side + out * depth, -out * depth, up * height, wall, -1, paint)
        if not hole.is_room:
            return
        # A room of its own, somewhat wider and higher than the opening, with a wall around that.
        wide, high = 0.8, min(0.5, float(self.room.size[2]) - hole.high[1])
        low = start - way * wide + out * depth
        low[2] = 0.0
        side, tall, deep = way * (width + 2 * wide), up * (hole.high[1] + high), out * hole.depth
        self._quad(low, side, deep, LABEL2ID["floor"], -1, self.room.paints["floor"])
        self._quad(low + tall + deep, side, -deep, LABEL2ID["ceiling"], -1, self.room.paints["ceiling"])
        for origin, edge in ((low, deep), (low + deep, side), (low + deep + side, -deep)):
            self._quad(origin, edge, tall, wall, -1, paint)
        for place in (low, low + way * (wide + width)):  # beside the opening, seen from behind
            self._quad(place + way * wide, -way * wide, tall, wall, -1, paint)

    def _building(self) -> None:
        """Blocks, and the slope of the ceiling."""
        for block in self.room.blocks:
            low, extent = block.box[0], block.box[1] - block.box[0]
            x, y, z = np.diag(extent)
            label = LABEL2ID[block.label]
            for corner, along, up in (
                (low, x, z), (low + x, y, z), (low + x + y, -x, z), (low + y, -y, z), (low + z, x, y),
                (low + y, x, -y),
            ):  # fmt: skip
                self._quad(corner, along, up, label, -1, block.paint)
        slope = self.room.slope
        if slope is not None:
            start, edge, yaw = self.room.walls()[slope.wall]
            inwards = np.round([math.sin(yaw), -math.cos(yaw)]) * slope.reach
            if slope.wall in (1, 2):  # so that it faces the room
                start, edge = start + edge, -edge
            self._quad((*start, slope.height), (*edge, 0), (*inwards, self.room.size[2] - slope.height),
                       LABEL2ID["ceiling"], -1, self.room.paints["ceiling"])  # fmt: skip

    def _panel(self, index: int, thing) -> None:
        x, y, z = thing.position
        side = np.array([math.cos(thing.yaw), math.sin(thing.yaw), 0.0]) * thing.size[0]
        if thing.label == "rug":
            back = np.array([-math.sin(thing.yaw), math.cos(thing.yaw), 0.0]) * thing.size[1]
            corner = np.array([x, y, z + thing.size[2]]) - side / 2 - back / 2
            self._quad(corner, side, back, LABEL2ID["rug"], index, thing.paint)
        else:  # what is behind a window belongs to the window
            self._quad(np.array([x, y, z]) - side / 2, side, (0, 0, thing.size[2]), LABEL2ID[thing.label],
                       thing.support, thing.paint)  # fmt: skip

    def _box(self, index: int, thing) -> None:
        """A picture: its front is painted, its edges are a frame."""
        x, y, z = thing.position
        width, depth, height = thing.size
        side = np.array([math.cos(thing.yaw), math.sin(thing.yaw), 0.0])
        front = np.array([math.sin(thing.yaw), -math.cos(thing.yaw), 0.0])
        low = np.array([x, y, z]) - side * width / 2
        frame = Paint((0.05, 0.04, 0.03), (0.05, 0.04, 0.03))
        label = LABEL2ID[thing.label]
        edge = 0.03
        at_front, up = low + front * depth / 2, np.array([0, 0, 1.0])
        self._quad(at_front, side * width, up * height, label, index, frame)
        inside = at_front + front * 0.002 + side * edge + up * edge
        self._quad(inside, side * (width - 2 * edge), up * (height - 2 * edge), label, index, thing.paint)
        back = low - front * depth / 2
        self._quad(back, front * depth, up * height, label, index, frame)
        self._quad(at_front + side * width, -front * depth, up * height, label, index, frame)
        self._quad(at_front + up * height, side * width, -front * depth, label, index, frame)
        self._quad(back, side * width, front * depth, label, index, frame)

    def _mesh(self, index: int, thing) -> None:
        mesh = load_mesh(thing.model)
        if mesh is None:
            return
        cosine, sine = math.cos(thing.yaw), math.sin(thing.yaw)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=np.float32)
        if thing.change is not None:
            mesh = thing.change(mesh, thing.size)
        size = np.array(thing.size, dtype=np.float32)
        vertices = (mesh.vertices * size) @ turn.T + np.array(thing.position, dtype=np.float32)
        normals = (mesh.normals / size) @ turn.T
        textures = np.full(len(mesh.textures), -1)
        colors = mesh.colors * np.array(thing.tint, dtype=np.float32)
        means = colors.copy()
        for place, pixels in enumerate(mesh.textures):
            if pixels is not None:
                textures[place] = len(self.textures)
                self.textures.append(pixels)
                means[place] *= _linear(pixels[::8, ::8]).mean(axis=(0, 1))
        own, uv, paints = mesh.material, mesh.uv, np.full(len(colors), -1)
        painted_materials = [place for place in np.unique(own) if mesh.paints and mesh.paints[place] is not None]
        if painted_materials:
            uv = uv.copy()
            for place in painted_materials:
                paint = mesh.paints[place]
                paints[place], textures[place] = len(self.paints), -1
                self.paints.append(paint)
                means[place] = (np.array(paint.base) + np.array(paint.accent)) / 2
                of_place = own == place
                uv[of_place] = _unfolded(mesh.vertices[of_place] * size)
        gloss = np.zeros((len(own), 2)) if mesh.gloss is None else mesh.gloss[own]
        self._append(vertices, normals, uv, LABEL2ID[thing.label], index, np.minimum(colors, 0.95)[own],
                     means[own], mesh.opacity[own], textures[own], paints[own], gloss)  # fmt: skip

    # ---- looking ----

    def glance(self, camera: Camera, edge: int = 40) -> np.ndarray:
        """Places in `Room.things` (-1: none) and depths at a coarse grid of `edge` x `edge` rays: int and float
        `[edge, edge]`."""
        directions = _directions(camera, edge, edge, 1)
        primitive, distance, _, _ = self.solid.cast(np.broadcast_to(camera.position, directions.shape), directions)
        things = np.where(primitive >= 0, self.solid.thing[primitive], -1)
        return things.reshape(edge, edge), (distance * (directions @ camera.forward)).reshape(edge, edge)

    def render(self, camera: Camera, height: int, width: int, rng: np.random.Generator) -> View:
        """The picture of a camera, and what is in it at the centres of its pixels."""
        origin = camera.position.astype(np.float32)
        centres = _directions(camera, height, width, 1)
        primitive, distance, u, v = self.solid.cast(np.broadcast_to(origin, centres.shape), centres)
        seen, first = primitive >= 0, primitive
        depth = np.where(seen, distance * (centres @ camera.forward.astype(np.float32)), 0)
        segmentation = np.where(seen, self.solid.label[primitive], 255)
        instances = np.where(seen, self.solid.thing[primitive] + 1, 0)
        normal = self.solid.normal_at(primitive, u, v, centres)
        # Light changes slowly over a surface: it is gathered at the pixels' centres, and its noise smoothed there; the
        # surface's own colour stays sharp.
        points = origin + centres * distance[:, None] + normal * OFFSET
        passes = self.room.light_passes
        light = sum(self._irradiance(points, normal, rng) for _ in range(passes)) / passes
        light, normals = light.reshape(height, width, 3), normal.reshape(height, width, 3)
        # One ray leaves more noise: it is smoothed with holes of growing size, so that no grid of them is seen.
        for radius, step, spread in ((4, 2, 0.7),) if passes > 1 else ((1, 1, 2.0), (2, 2, 2.0), (4, 4, 2.0)):
            light = _smooth(light, normals, depth.reshape(height, width), radius, step, spread)
        mirrored = np.where(seen & (self.solid.gloss[first, 0] > 0))[0]

        rays = _directions(camera, height, width, 2)
        primitive, distance, u, v = self.solid.cast(np.broadcast_to(origin, rays.shape), rays)
        albedo, emission = self.colors_at(self.solid, primitive, u, v)
        albedo, emission = (
            values.reshape(-1, 4, 3).mean(axis=1).reshape(height, width, 3) for values in (albedo, emission)
        )
        color = albedo * light + emission
        if len(mirrored):
            gloss = self.solid.gloss[first[mirrored]]
            share, sent = self._reflected(points[mirrored], normal[mirrored], centres[mirrored], gloss, rng)
            shine = np.zeros((height * width, 3), dtype=np.float32)
            shine[mirrored] = sent * share
            smooth = shine.reshape(height, width, 3)
            for radius in (1, 2) if (gloss[:, 1] > 0).any() else ():
                smooth = _smooth(smooth, normals, depth.reshape(height, width), radius, radius, 2.0)
            rough = mirrored[gloss[:, 1] > 0]
            shine[rough] = smooth.reshape(-1, 3)[rough]
            flat = color.reshape(-1, 3)
            flat[mirrored] = flat[mirrored] * (1 - share) + shine[mirrored]
        if self.glass is not None:
            color = self._through_glass(color, origin, rays, distance, height, width)
        return View(
            _develop(color, rng), segmentation.reshape(height, width).astype(np.uint8),
            depth.reshape(height, width).astype(np.float32), instances.reshape(height, width).astype(np.uint16),
        )  # fmt: skip

    def _reflected(self, points, normals, directions, gloss, rng):
        """What surfaces reflect, and its share: float32 `[n, 3]` and `[n, 1]`."""
        cosine = np.clip(-_dot(normals, directions), 0, 1)
        share = gloss[:, 0] + (1 - gloss[:, 0]) * (1 - cosine) ** 5 * np.exp(-8 * gloss[:, 1])
        rough = normals + rng.normal(0, 1, normals.shape).astype(np.float32) * gloss[:, 1:] * 0.5
        rough = _unit(rough)
        way = _unit(directions - 2 * _dot(directions, rough)[:, None] * rough).astype(np.float32)
        primitive, distance, u, v = self.solid.cast(points, way)
        albedo, emission = self.colors_at(self.solid, primitive, u, v)
        normal = self.solid.normal_at(primitive, u, v, way)
        hits = points + way * np.minimum(distance, 100)[:, None] + normal * OFFSET
        return share[:, None], np.minimum(
            albedo * self._irradiance(hits, normal, rng) + emission, 1.5
        )  # grains of light would stay

    def _through_glass(self, color, origin, rays, distance, height, width):
        primitive, near, u, v = self.glass.cast(np.broadcast_to(origin, rays.shape), rays)
        hit = (primitive >= 0) & (near < distance)
        tint, _ = self.colors_at(self.glass, primitive, u, v)
        facing = np.abs(_dot(self.glass.normal_at(primitive, u, v, rays), rays))
        share = np.where(hit, 0.12 + 0.4 * (1 - facing) ** 3, 0)[:, None]
        shine = (0.5 * tint + 0.25 * self.room.ambient.astype(np.float32)) * share
        share, shine = (values.reshape(height, width, 4, -1).mean(axis=2) for values in (share, shine))
        return color * (1 - share) + shine

    def colors_at(self, triangles: "_Triangles", primitive, u, v):
        """Diffuse colour and emission at hits, float32 `[n, 3]` each."""
        color = triangles.color[primitive].copy()
        emission = np.zeros_like(color)
        coordinates = triangles.uv_at(primitive, u, v)
        texture = np.where(primitive >= 0, triangles.texture[primitive], -1)
        for place in np.unique(texture[texture >= 0]):
            own = texture == place
            pixels = self.textures[place]
            rows = ((1 - coordinates[own, 1]) % 1 * pixels.shape[0]).astype(int) % pixels.shape[0]
            columns = (coordinates[own, 0] % 1 * pixels.shape[1]).astype(int) % pixels.shape[1]
            color[own] *= _linear(pixels[rows, columns])
        paint = np.where(primitive >= 0, triangles.paint[primitive], -1)
        for place in np.unique(paint[paint >= 0]):
            own = paint == place
            row = self.paints[place]
            color[own] = painted(row, coordinates[own])
            if row.emission:
                emission[own], color[own] = color[own] * row.emission, 0.02
        color[primitive < 0] = 0
        return color, emission

    def _irradiance(self, points, normals, rng):
        """Light that arrives at points, over pi: a shadow ray to each light, and two rays for what other surfaces send
        and hide."""
        count = len(points)
        total = np.zeros((count, 3), dtype=np.float32)
        for light in self.room.lights:
            corner, edges, color = (
                np.asarray(value, dtype=np.float32) for value in (light.corner, light.edges, light.color)
            )
            spot = corner + rng.random((count, 2), dtype=np.float32) @ edges
            way = spot - points
            square = _dot(way, way)
            length = np.sqrt(square)
            way /= length[:, None]
            face = np.cross(edges[0], edges[1])
            area = np.linalg.norm(face)
            cosine = np.maximum(_dot(normals, way), 0) * np.maximum(-(way @ face), 0) / area
            lit = np.flatnonzero(cosine > 1e-4)
            free = ~self.solid.is_hidden(points[lit], way[lit], length[lit] - 0.02)
            share = cosine[lit] * area / np.maximum(square[lit], 0.3) * free / math.pi
            total[lit] += share[:, None] * color
        for sun in self.room.suns:
            total += self._sunshine(sun, points, normals)
        ambient = self.room.ambient.astype(np.float32)
        for _ in range(2):
            way = normals + _on_sphere(count, rng)
            way = _unit(way)
            primitive, distance, _, _ = self.solid.cast(points, way)
            # What is near hides the light that it would send; what is far sends the room's, in its colour.
            share = np.clip(distance / 0.9, 0, 1) * 0.85 + 0.1
            sent = self.solid.mean_color[primitive] * 0.8 + 0.2
            total += np.where(primitive >= 0, share, 1)[:, None] * sent * ambient / 2
        return total

    def _sunshine(self, sun, points, normals):
        """Light of the sun that comes through an opening, over pi, float32 `[n, 3]`."""
        total = np.zeros((len(points), 3), dtype=np.float32)
        corner, edges, way = (np.asarray(v, dtype=np.float32) for v in (sun.corner, sun.edges, sun.direction))
        face = np.cross(edges[0], edges[1])
        length = ((corner - points) @ face) / float(way @ face)
        place = points + way * length[:, None] - corner
        inside = (length > 0) & (_dot(normals, way) > 1e-3)
        for edge in edges:
            share = place @ edge / float(edge @ edge)
            inside &= (share > 0) & (share < 1)
        lit = np.flatnonzero(inside)
        ways = np.broadcast_to(way, (len(lit), 3))
        free = ~self.solid.is_hidden(points[lit], np.ascontiguousarray(ways), length[lit] - 0.005)
        total[lit] = (_dot(normals[lit], ways) * free)[:, None] * np.asarray(sun.color, dtype=np.float32)
        return total


class _Triangles:
    """Triangles of a scene that rays can meet, with what belongs to each of them."""

    def __init__(self, parts: dict[str, np.ndarray], kept: np.ndarray):
        for name, values in parts.items():
            setattr(self, name, np.ascontiguousarray(values[kept]))
        self.scene = EmbreeScene()
        self.mesh = TriangleMesh(self.scene, self.vertices)

    def cast(self, origins, directions):
        """First hits: triangle (-1: none), distance, and barycentric coordinates, `[n]` each."""
        hits = self.scene.run(
            np.ascontiguousarray(origins, dtype=np.float32),
            np.ascontiguousarray(directions, dtype=np.float32),
            output=1,
        )
        primitive = hits["primID"].astype(np.int64)
        return primitive, np.where(primitive >= 0, hits["tfar"], FAR).astype(np.float32), hits["u"], hits["v"]

    def is_hidden(self, origins, directions, lengths) -> np.ndarray:
        """Whether something is nearer than `lengths`: bool `[n]`."""
        if not len(origins):
            return np.zeros(0, dtype=bool)
        lengths = np.maximum(lengths, 1e-3).astype(np.float32)
        return self.scene.run(origins, directions, dists=lengths, query="OCCLUDED") >= 0

    def _mix(self, values, primitive, u, v):
        own = values[primitive]
        return own[:, 0] * (1 - u - v)[:, None] + own[:, 1] * u[:, None] + own[:, 2] * v[:, None]

    def uv_at(self, primitive, u, v):
        return self._mix(self.uv, primitive, u, v)

    def normal_at(self, primitive, u, v, directions):
        """Smooth unit normals at hits, on the side that is looked at."""
        normal = self._mix(self.normals, primitive, u, v)
        normal = _unit(normal)
        return np.where((_dot(normal, directions) > 0)[:, None], -normal, normal)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)  # numpy's own sum over a short last axis is several times slower


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(np.maximum(_dot(vectors, vectors), 1e-12))[..., None]


def _linear(pixels: np.ndarray) -> np.ndarray:
    return _LINEAR[pixels]


_LINEAR = ((np.arange(256) / 255) ** 2.2).astype(np.float32)


def _unfolded(corners: np.ndarray) -> np.ndarray:
    """Places on the sides of a thing, seen along the axis that each triangle faces most: float32 `[n, 3, 2]` metres of
    corners `[n, 3, 3]`. What faces up or down has its second coordinate along the longer side of all."""
    faces = np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    axis = faces.argmax(axis=1)
    extent = np.ptp(corners.reshape(-1, 3), axis=0)
    flat = [0, 1] if extent[1] > extent[0] else [1, 0]
    axes = np.array([[1, 2], [0, 2], flat])[axis]
    return np.take_along_axis(corners, axes[:, None, :].repeat(3, axis=1), axis=2)


def _directions(camera: Camera, height: int, width: int, samples: int) -> np.ndarray:
    """Unit directions through the pixels, float32 `[height * width * samples**2, 3]`, a pixel's samples together."""
    forward = camera.forward
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    if camera.roll:
        cosine, sine = math.cos(camera.roll), math.sin(camera.roll)
        right, up = cosine * right + sine * up, cosine * up - sine * right
    focal = camera.focal_length * width
    inner = (np.arange(samples) + 0.5) / samples
    rows = (np.arange(height)[:, None] + inner).reshape(height, 1, samples, 1)
    columns = (np.arange(width)[:, None] + inner).reshape(1, width, 1, samples)
    shape = (height, width, samples, samples)
    x = np.broadcast_to((columns - width / 2) / focal, shape).reshape(-1, 1)
    y = np.broadcast_to((height / 2 - rows) / focal, shape).reshape(-1, 1)
    directions = (forward + x * right + y * up).astype(np.float32)
    return _unit(directions)


def _on_sphere(count: int, rng) -> np.ndarray:
    z = rng.random(count, dtype=np.float32) * 2 - 1
    angle = rng.random(count, dtype=np.float32) * np.float32(2 * math.pi)
    ring = np.sqrt(np.maximum(1 - z * z, 0))
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def _smooth(light, normal, depth, radius: int, step: int, softness: float):
    """Mean of the light over near pixels (each `step`-th) of the same surface: like normals, like depths."""
    height, width, _ = light.shape
    total, weights = np.zeros_like(light), np.zeros((height, width, 1), dtype=np.float32)
    pad = ((radius, radius), (radius, radius), (0, 0))
    padded = [np.pad(values, pad, mode="edge") for values in (light, normal, depth[..., None].astype(np.float32))]
    spread = (0.03 * depth + 0.02)[..., None]
    for dy in range(0, 2 * radius + 1, step):
        for dx in range(0, 2 * radius + 1, step):
            own_light, own_normal, own_depth = (values[dy : dy + height, dx : dx + width] for values in padded)
            alike = np.maximum(_dot(normal, own_normal), 0)[..., None]
            for _ in range(4):
                alike = alike * alike
            near = np.exp(-(((own_depth - depth[..., None]) / spread) ** 2))
            weight = alike * near * math.exp(-((dy - radius) ** 2 + (dx - radius) ** 2) / (softness * radius**2))
            total += own_light * weight
            weights += weight
    return total / np.maximum(weights, 1e-6)


def _develop(color, rng) -> np.ndarray:
    """Exposure, a soft shoulder, sRGB, and a sensor's noise."""
    brightness = np.percentile(color.mean(axis=2), 60)
    color = color * (rng.uniform(0.32, 0.5) / max(brightness, 1e-4))
    color = np.where(color > 0.7, 0.7 + 0.3 * (1 - np.exp(-(color - 0.7) / 0.3)), color)
    srgb = np.where(color < 0.0031308, 12.92 * color, 1.055 * np.maximum(color, 1e-6) ** (1 / 2.4) - 0.055)
    srgb += rng.normal(0, 0.006, srgb.shape)
    return (np.clip(srgb, 0, 1) * 255 + 0.5).astype(np.uint8)
