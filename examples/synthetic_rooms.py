"""Seeded synthetic rooms: an RGB image, a class map and exact metric depth from one integer.

Embedded stand-in data for demos and tests of dense prediction: no download, no licence, unlimited held-out seeds.
Every room is a box of convex solids that is ray-cast in NumPy, so the labels and the depth are exact while the image
has the usual nuisances (perspective, textures, soft shadows, vignetting, sensor noise).

    python examples/synthetic_rooms.py --out rooms.png --seeds 8

Conventions: metres; x is right, y away from the camera's wall, z up, and the floor is z = 0. Rays and points are
``float64 [3, N]`` (one contiguous row per axis) and colours are linear RGB until the last step.
"""

import argparse
import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from PIL import Image


ID2LABEL: dict[int, str] = dict(
    enumerate("floor wall ceiling door window picture table chair cabinet lamp plant ball".split())
)
MAX_DEPTH: float = 10.0  # the diagonal of the largest room is 9.7
IGNORE_INDEX = 255  # never rendered, reserved for consumers that mask pixels

_LABEL2ID = {name: index for index, name in ID2LABEL.items()}
_LIGHT_POINTS = 3  # samples of the area light: 1 is a hard shadow, and each of them costs a full shadow pass
_Colour = tuple[float, float, float]
_Span = tuple[float, float]  # low, high


@dataclass(frozen=True)
class Room:
    """One rendered frame; the arrays are aligned pixel by pixel."""

    image: np.ndarray  # uint8 [H, W, 3], sRGB
    segmentation: np.ndarray  # uint8 [H, W], keys of ID2LABEL at pixel centres
    depth: np.ndarray  # float32 [H, W], metres along the optical axis (not along the ray) at pixel centres


@dataclass(frozen=True)
class _Paint:
    """A surface that mixes ``base`` and ``accent`` by a procedural pattern of ``scale`` metres."""

    base: _Colour
    accent: _Colour = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    scale: float = 0.1
    emission: float = 0.0  # 0 is only lit, 1 only glows


@dataclass(frozen=True)
class _Solid:
    """A convex solid turned by ``yaw`` about the vertical.

    ``half`` are its half extents; a frustum has its *bottom* radius in x and y, and ``taper`` times that at the top.
    """

    shape: str  # "box", "ellipsoid" or "frustum"
    label: str
    paint: _Paint
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0
    taper: float = 1.0

    @property
    def extent(self) -> np.ndarray:
        """Half extents of the bounding box in the solid's frame, float64 [3]."""
        widest = max(1.0, self.taper)
        return np.array(self.half) * (widest, widest, 1.0)


@dataclass(frozen=True)
class _Scene:
    size: np.ndarray  # float64 [3], the room spans the origin to this corner
    shell: tuple[_Paint, _Paint, _Paint]  # floor, wall, ceiling
    solids: list[_Solid]
    lights: np.ndarray  # float64 [_LIGHT_POINTS, 3]
    light_colour: np.ndarray  # float64 [3]
    ambient: float
    eye: np.ndarray  # float64 [3]
    axes: np.ndarray  # float64 [3, 3], rows are the camera's right, down and forward
    focal: float  # in units of the longer image side
    vignette: float
    noise: float  # standard deviation in grey levels


# --- Geometry ---


def _turn(vectors: np.ndarray, yaw: float) -> np.ndarray:
    """Rotates [3] or [3, N] vectors about the vertical."""
    x, y, z = vectors
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array((cos * x - sin * y, sin * x + cos * y, z)) if yaw else vectors


def _box_span(origin: np.ndarray, directions: np.ndarray, half: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distance of rays through a centred box; a ray that misses enters after it leaves."""
    inverse = 1.0 / (directions + 1e-30)  # keeps 0 out of the division and changes no other direction
    middle, reach = -origin[:, None] * inverse, np.array(half)[:, None] * np.abs(inverse)
    return (middle - reach).max(axis=0), (middle + reach).min(axis=0)


def _hit(solid: _Solid, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distance, in lengths of each direction, at which rays from one outside point enter the solid; inf for a miss."""
    origin, directions = _turn(origin - solid.centre, -solid.yaw), _turn(directions, -solid.yaw)
    if solid.shape == "box":
        enter, leave = _box_span(origin, directions, solid.half)
        return np.where((enter <= leave) & (enter > 0), enter, np.inf)
    if solid.shape == "ellipsoid":
        o, d = origin / solid.half, directions / np.array(solid.half)[:, None]
        a, b, c = (d * d).sum(axis=0), o @ d, o @ o - 1.0
        enter = (-b - np.sqrt(b * b - a * c)) / a  # nan for a miss
        return np.where(enter > 0, enter, np.inf)
    (ox, oy, oz), (dx, dy, dz), height, bottom = origin, directions, solid.half[2], solid.half[0]
    slope = bottom * (solid.taper - 1.0) / (2.0 * height)
    radius = bottom * (solid.taper + 1.0) / 2.0 + slope * oz
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = ox * dx + oy * dy - slope * dz * radius
    root = np.sqrt(b * b - a * (ox * ox + oy * oy - radius * radius))
    nearest = np.full(dx.shape, np.inf)  # of two walls and two caps: on a convex solid, the nearest is the entry
    for t in ((-b - root) / a, (-b + root) / a):
        nearest = np.where((t > 0) & (t < nearest) & (np.abs(oz + t * dz) <= height), t, nearest)
    for z, rim in ((-height, bottom), (height, bottom * solid.taper)):
        t = (z - oz) / dz
        inside = (ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= rim * rim
        nearest = np.where((t > 0) & (t < nearest) & inside, t, nearest)
    return nearest


def _trace(solids: Sequence[_Solid], origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest hits of N rays from one point: distances float64 [N] (inf for none), solid indices int64 [N] (or -1).

    Camera and light rays both leave from a single point, so one cone per bounding sphere, all of them tested in one
    matrix product, leaves each solid with only the few rays that can reach it.
    """
    nearest, index = np.full(directions.shape[1], np.inf), np.full(directions.shape[1], -1)
    if not solids:
        return nearest, index
    offsets = np.array([solid.centre for solid in solids]) - origin
    gaps = np.maximum(np.linalg.norm(offsets, axis=1), 1e-9)
    sines = np.array([np.linalg.norm(solid.extent) for solid in solids]) / gaps
    cosines = np.where(sines < 1.0, np.sqrt(np.maximum(1.0 - sines**2, 0.0)) - 1e-5, -2.0)
    units = (directions / np.sqrt((directions * directions).sum(axis=0))).astype(np.float32)
    alignment = (offsets / gaps[:, None]).astype(np.float32) @ units
    with np.errstate(divide="ignore", invalid="ignore"):
        for i, solid in enumerate(solids):
            rays = np.flatnonzero(alignment[i] > np.float32(cosines[i]))
            t = _hit(solid, origin, directions.take(rays, axis=1))
            closer = t < nearest[rays]
            nearest[rays[closer]] = t[closer]
            index[rays[closer]] = i
    return nearest, index


def _box_normals(points: np.ndarray, half: Sequence[float]) -> np.ndarray:
    ratio = points / np.array(half)[:, None]
    return (np.abs(ratio).argmax(axis=0) == np.arange(3)[:, None]) * np.sign(ratio)


def _normals(solid: _Solid, points: np.ndarray) -> np.ndarray:
    """Outward unit normals at surface points, both [3, N] in the solid's frame."""
    if solid.shape == "box":
        return _box_normals(points, solid.half)
    if solid.shape == "ellipsoid":
        normals = points / np.array(solid.half)[:, None] ** 2
    else:
        x, y, z = points
        slope = solid.half[0] * (solid.taper - 1.0) / (2.0 * solid.half[2])
        cap = np.abs(z) > solid.half[2] * (1 - 1e-6)
        normals = np.where(cap, (0 * x, 0 * x, z), (x, y, -slope * np.hypot(x, y)))
    return normals / np.maximum(np.sqrt((normals * normals).sum(axis=0)), 1e-9)


# --- Surfaces ---


def _hash(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A repeatable pseudo-random number in [0, 1) per integer cell."""
    return np.abs(np.sin(i * 12.9898 + j * 78.233)) * 43758.5453 % 1.0


def _value_noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth noise in [0, 1] with one knot per unit."""
    i, j = np.floor(u), np.floor(v)
    s, t = (w * w * (3 - 2 * w) for w in (u - i, v - j))
    low = _hash(i, j) * (1 - s) + _hash(i + 1, j) * s
    high = _hash(i, j + 1) * (1 - s) + _hash(i + 1, j + 1) * s
    return low * (1 - t) + high * t


def _seam(x: np.ndarray, width: float, footprint: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1] of seams at the integers, fading where a pixel's footprint is wider than the seam."""
    blur = np.maximum(footprint, 0.5 * width)
    return np.clip((0.5 * width - np.abs(x - np.round(x))) / blur + 0.5, 0, 1) * np.minimum(width / blur, 1)


def _albedo(paint: _Paint, points: np.ndarray, normals: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Linear RGB [3, N] at points of the solid's frame; ``footprint`` is the size of a pixel there in metres [N]."""
    (x, y, z), phase = points, 100.0 * paint.base[0]  # no two paints show the same cut of the noise
    u = np.where(np.abs(normals[0]) > 0.7, y, x) / paint.scale + phase
    v = np.where(np.abs(normals[2]) > 0.7, y, z) / paint.scale
    blur, gain, mix = footprint / paint.scale, np.ones_like(u), np.zeros_like(u)
    if paint.pattern == "planks":
        row = np.floor(v)
        along = u / 7 + _hash(row, row)
        mix = 0.5 * _hash(row, np.floor(along)) + 0.4 * _value_noise(u * 1.5 + 9 * row, v * 14)
        gain -= 0.6 * np.maximum(_seam(v, 0.05, blur), _seam(along, 0.006, blur / 7))
    elif paint.pattern == "grain":
        mix = 0.9 * _value_noise(u, 9 * v)
    elif paint.pattern == "speckle":
        mix = _value_noise(u, v)
    elif paint.pattern == "tiles":
        mix = np.maximum(_seam(u, 0.05, blur), _seam(v, 0.05, blur))
        gain -= 0.2 * _hash(np.floor(u), np.floor(v))
    elif paint.pattern == "checks":
        mix = (np.floor(u) + np.floor(v)) % 2
    elif paint.pattern == "bricks":
        row = np.floor(2.5 * v)
        along = u + 0.5 * (row % 2)
        mix = np.maximum(_seam(along, 0.06, blur), _seam(2.5 * v, 0.15, 2.5 * blur))
        gain -= 0.35 * _hash(np.floor(along), row) * (1 - mix)
    elif paint.pattern == "stripes":
        mix = np.clip((np.abs(u % 1 - 0.5) - 0.25) / np.maximum(blur, 0.02) + 0.5, 0, 1)
    elif paint.pattern == "leaves":
        mix = np.clip(2.2 * _value_noise(x / paint.scale + 3 * z, (z + 0.5 * y) / paint.scale) - 0.6, 0, 1)
    elif paint.pattern == "view":  # from a window: uneven treetops under a sky that brightens downwards
        mix = z < 0.3 * _value_noise(u, phase * np.ones_like(u)) - 0.2
        gain = np.where(mix, 0.6 + 0.4 * _value_noise(3 * u, 3 * v), 1.0 - 0.3 * np.clip(z, 0, 1))
    elif paint.pattern == "art":  # two soft fields that meet at a hard horizon
        mix = np.where(v > _value_noise(u, phase * np.ones_like(u)), _value_noise(u, 2 * v), _value_noise(3 * u, v))
    base, accent = np.array(paint.base)[:, None], np.array(paint.accent)[:, None]
    return (base + (accent - base) * mix) * gain


def _render_rays(scene: _Scene, directions: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour, depth and surface of N camera rays.

    Args:
        directions: [3, N] in world axes, one unit long along the optical axis, so that hit distance is z-depth.
        pixel: Size of a pixel at a depth of one metre.

    Returns:
        Linear RGB [3, N], depth [N] and surface int64 [N]: an index into ``scene.solids``, or -3, -2 and -1 for floor,
        wall and ceiling.
    """
    middle = scene.size / 2
    depth, surface = _trace(scene.solids, scene.eye, directions)
    shell = np.flatnonzero(surface < 0)
    depth[shell] = _box_span(scene.eye - middle, directions.take(shell, axis=1), middle)[1]
    points = scene.eye[:, None] + depth * directions
    normals, albedo, emission = np.empty_like(points), np.empty_like(points), np.empty_like(depth)
    normals[:, shell] = -_box_normals(points.take(shell, axis=1) - middle[:, None], middle)
    surface[shell] = -2 - normals[2, shell].astype(np.int64)
    for i in np.unique(surface):
        rays = np.flatnonzero(surface == i)
        local = points.take(rays, axis=1)
        if i < 0:
            paint, facing = scene.shell[i], normals.take(rays, axis=1)
        else:
            solid = scene.solids[i]
            paint, local = solid.paint, _turn(local - np.array(solid.centre)[:, None], -solid.yaw)
            facing = _normals(solid, local)
            normals[:, rays] = _turn(facing, solid.yaw)
        albedo[:, rays] = _albedo(paint, local, facing, depth[rays] * pixel)
        emission[rays] = paint.emission

    occluders = [solid for solid in scene.solids if not solid.paint.emission]  # a glowing shade lets its light pass
    direct = np.zeros_like(depth)
    for light in scene.lights:
        away = points - light[:, None]
        square = (away * away).sum(axis=0)
        cosine = -(normals * away).sum(axis=0) / np.sqrt(square)
        rays = np.flatnonzero(cosine > 0)
        lit = _trace(occluders, light, away.take(rays, axis=1))[0] > 0.998  # 1 is the point itself
        direct[rays] += lit * cosine[rays] * (light[2] ** 2 + 1.5) / (square[rays] + 1.5)  # 1 on the floor below
    ambient = scene.ambient * (1.0 + 0.1 * normals[0])  # tells the sides of a box apart where no light falls
    for axis in range(3):  # corners see less of the room: darken near each of its six planes, but not the plane itself
        for gap, inward in (points[axis], normals[axis]), (scene.size[axis] - points[axis], -normals[axis]):
            ambient *= 1.0 - 0.4 * np.exp(-gap / 0.25) * (1.0 - np.maximum(inward, 0.0))
    light = (ambient + 0.8 / _LIGHT_POINTS * direct) * scene.light_colour[:, None]
    return albedo * (light * (1 - emission) + emission), depth, surface


# --- Furniture: builders return solids around the origin that stand on z = 0 with their back towards +y ---


def _colour(rng: np.random.Generator, hue: _Span, saturation: _Span, value: _Span) -> _Colour:
    """A random linear RGB colour from HSV ranges; hues are in turns and may be negative."""
    hsv = rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value)
    return tuple(channel**2.2 for channel in colorsys.hsv_to_rgb(*hsv))


def _dimmed(colour: _Colour, factor: float) -> _Colour:
    return tuple(factor * channel for channel in colour)


def _wood(rng: np.random.Generator, pattern: str = "grain", scale: float = 0.12) -> _Paint:
    base = _colour(rng, (0.05, 0.1), (0.25, 0.7), (0.4, 0.85))
    return _Paint(base, _dimmed(base, 0.55), pattern, scale)


def _paint(rng: np.random.Generator, saturation: float, pattern: str = "plain", scale: float = 0.1) -> _Paint:
    base, accent = (_colour(rng, (0, 1), (0, saturation), (0.25, 0.95)) for _ in range(2))
    return _Paint(base, accent, pattern, scale)


def _wood_or_paint(rng: np.random.Generator, wood: float, saturation: float) -> _Paint:
    return _wood(rng) if rng.random() < wood else _paint(rng, saturation)


def _box(label: str, paint: _Paint, x: _Span, y: _Span, z: _Span) -> _Solid:
    """A box from its (low, high) coordinates."""
    spans = (x, y, z)
    return _Solid("box", label, paint, tuple((a + b) / 2 for a, b in spans), tuple((b - a) / 2 for a, b in spans))


def _frustum(label: str, paint: _Paint, radius: float, z: _Span, taper: float = 1.0) -> _Solid:
    """A frustum around the vertical from its (low, high) heights."""
    return _Solid("frustum", label, paint, (0, 0, (z[0] + z[1]) / 2), (radius, radius, (z[1] - z[0]) / 2), taper=taper)


def _moved(solids: Sequence[_Solid], x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> list[_Solid]:
    """Turns solids about the origin, then shifts them."""
    shift = np.array((x, y, z))
    return [replace(s, centre=tuple(_turn(np.array(s.centre), yaw) + shift), yaw=s.yaw + yaw) for s in solids]


def _frame(label: str, paint: _Paint, width: float, z: _Span, bar: float, thickness: float) -> list[_Solid]:
    """Left, right, top and bottom bar around an opening in a wall."""
    side, y = width / 2, (-thickness, 0.0)
    bars = [_box(label, paint, x, y, (z[0] - bar, z[1] + bar)) for x in ((-side - bar, -side), (side, side + bar))]
    return bars + [_box(label, paint, (-side, side), y, span) for span in ((z[1], z[1] + bar), (z[0] - bar, z[0]))]


def _door(rng: np.random.Generator) -> list[_Solid]:
    width, height, rows = rng.uniform(0.75, 1.0), rng.uniform(1.95, 2.15), rng.integers(0, 4)
    leaf, trim, metal = _wood_or_paint(rng, 0.6, 0.5), _wood_or_paint(rng, 0.4, 0.1), _paint(rng, 0.2)
    knob = rng.choice((-1, 1)) * (width / 2 - 0.08), -0.07, 1.0
    solids = [_box("door", leaf, (-width / 2, width / 2), (-0.03, 0), (0, height))]
    solids += [_Solid("ellipsoid", "door", metal, knob, (0.04, 0.04, 0.04))]
    solids += _frame("door", trim, width, (0.08, height), 0.08, 0.06)[:3]  # no bottom bar
    edges = np.linspace(0.12, height, rows + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):  # raised panels
        solids.append(_box("door", leaf, (0.13 - width / 2, width / 2 - 0.13), (-0.045, 0), (low, high - 0.12)))
    return solids


def _window(rng: np.random.Generator) -> list[_Solid]:
    width, height, low = rng.uniform(0.7, 1.8), rng.uniform(0.8, 1.25), rng.uniform(0.75, 1.0)
    trim, z = _wood_or_paint(rng, 0.3, 0.08), (low, low + height)
    sky = _colour(rng, (0.53, 0.65), (0.05, 0.5), (0.7, 1.0))
    land = _dimmed(_colour(rng, (0.2, 0.36), (0.3, 0.7), (0.35, 0.7)), sky[1])
    pane = _Paint(sky, land, "view", rng.uniform(0.2, 0.5), emission=0.9)
    solids = [_box("window", pane, (-width / 2, width / 2), (-0.01, 0), z)]
    solids += _frame("window", trim, width, z, rng.uniform(0.05, 0.1), 0.07)
    for x in np.linspace(-width / 2, width / 2, rng.integers(2, 5))[1:-1]:
        solids.append(_box("window", trim, (x - 0.025, x + 0.025), (-0.05, 0), z))
    return solids


def _picture(rng: np.random.Generator) -> list[_Solid]:
    width, height = rng.uniform(0.35, 1.1), rng.uniform(0.35, 0.8)
    low, art = rng.uniform(1.45, 1.65) - height / 2, _paint(rng, 1.0, "art", rng.uniform(0.1, 0.3))
    canvas = _box("picture", art, (-width / 2, width / 2), (-0.015, 0), (low, low + height))
    trim = _wood_or_paint(rng, 0.5, 0.2)
    return [canvas, *_frame("picture", trim, width, (low, low + height), rng.uniform(0.02, 0.06), 0.03)]


def _cabinet(rng: np.random.Generator) -> list[_Solid]:
    """A cupboard or a chest of drawers; a low one sometimes carries something."""
    width, deep = rng.uniform(0.5, 1.5), rng.uniform(0.35, 0.55)
    height = rng.choice((0.8, 1.1, 1.9)) * rng.uniform(0.85, 1.1)
    body, metal = _wood_or_paint(rng, 0.65, 0.5), _paint(rng, 0.1)
    front = body if rng.random() < 0.6 else _paint(rng, 0.4)
    solids = [_box("cabinet", body, (-width / 2, width / 2), (-deep, 0), (0, height))]
    across = np.linspace(-width / 2, width / 2, rng.integers(2, 4))
    up = np.linspace(0.07, height, rng.integers(2, 6))
    for left, right in zip(across[:-1], across[1:], strict=True):
        for low, high in zip(up[:-1], up[1:], strict=True):
            x, z, y = (left + right) / 2, high - 0.1, (-deep - 0.02, -deep)
            solids.append(_box("cabinet", front, (left + 0.015, right - 0.015), y, (low, high - 0.03)))
            solids.append(_box("cabinet", metal, (x - 0.06, x + 0.06), (-deep - 0.05, -deep), (z, z + 0.025)))
    if height < 1.3 and rng.random() < 0.4:
        item = rng.choice((_plant, _lamp))(rng, 0.5)
        solids += _moved(item, rng.uniform(-0.25, 0.25) * width, -deep / 2, height)
    return solids


def _table(rng: np.random.Generator) -> list[_Solid]:
    """A round or rectangular table, sometimes a low one, with chairs around it and things on it."""
    height, top = rng.uniform(*((0.68, 0.78) if rng.random() < 0.75 else (0.38, 0.48))), rng.uniform(0.025, 0.05)
    width, deep = rng.uniform(0.8, 1.7), rng.uniform(0.6, 0.95)
    paint, leg = _wood_or_paint(rng, 0.75, 0.4), rng.uniform(0.025, 0.045)
    legs = paint if rng.random() < 0.6 else _paint(rng, 0.1)
    if rng.random() < 0.3:
        deep = width = min(width, 1.2)
        solids = [_frustum("table", paint, width / 2, (height - top, height))]
        solids += [_frustum("table", legs, leg + 0.01, (0.03, height - top))]
        solids += [_frustum("table", legs, 0.3 * width, (0, 0.03), 0.9)]
    else:
        solids = [_box("table", paint, (-width / 2, width / 2), (-deep / 2, deep / 2), (height - top, height))]
        for x in (2 * leg - width / 2, width / 2 - 2 * leg):
            for y in (2 * leg - deep / 2, deep / 2 - 2 * leg):
                solids.append(_box("table", legs, (x - leg, x + leg), (y - leg, y + leg), (0, height - top)))
    chair = _chair(rng)
    for turn in range(4 if height > 0.6 else 0):
        if rng.random() < 0.4:
            reach = (width if turn % 2 else deep) / 2 + rng.uniform(0.24, 0.45)
            solids += _moved(_moved(chair, y=reach, yaw=rng.uniform(-0.2, 0.2)), yaw=turn * np.pi / 2)
    for x in (-0.25 * width, 0.25 * width):
        if rng.random() < 0.5:
            item = rng.choice((_plant, _lamp, _ball), p=(0.4, 0.4, 0.2))(rng, 0.42)
            solids += _moved(item, x, rng.uniform(-0.2, 0.2) * deep, height)
    return solids


def _chair(rng: np.random.Generator) -> list[_Solid]:
    side, seat, height = rng.uniform(0.19, 0.25), rng.uniform(0.42, 0.48), rng.uniform(0.8, 1.05)
    frame, thick = _wood_or_paint(rng, 0.6, 0.3), rng.uniform(0.03, 0.05)
    cover = frame if rng.random() < 0.4 else _paint(rng, 0.9)
    edge = (-side - 0.005, side + 0.005)  # overhangs: faces in one plane with the legs would flicker
    solids = [_box("chair", cover, edge, edge, (seat - 0.05, seat))]
    for x in (-side, side - thick):
        solids.append(_box("chair", frame, (x, x + thick), (-side, thick - side), (0, seat - 0.05)))
        solids.append(_box("chair", frame, (x, x + thick), (side - thick, side), (0, height)))
    rails = [(seat + 0.08, height)] if rng.random() < 0.6 else [(height - 0.1, height), (seat + 0.12, seat + 0.2)]
    return solids + [_box("chair", cover, (thick - side, side - thick), (side - 0.03, side - 0.01), z) for z in rails]


def _lamp(rng: np.random.Generator, height: float | None = None) -> list[_Solid]:
    """A floor lamp, or a table lamp of the given height."""
    size = height or rng.uniform(1.35, 1.75)
    radius, shade = rng.uniform(0.18, 0.28) * (0.65 if height else 1), rng.uniform(0.25, 0.38) * (0.6 if height else 1)
    metal, glow = _paint(rng, 0.3), rng.choice((0.0, 0.75))
    cloth = _Paint(_colour(rng, (0.0, 0.17), (0.05, 0.5), (0.75, 1.0)), emission=glow)
    return [
        _frustum("lamp", metal, 0.65 * radius, (0, 0.03), 0.8),
        _frustum("lamp", metal, 0.015, (0.03, size - shade)),
        _frustum("lamp", cloth, radius, (size - shade, size), rng.uniform(0.35, 0.85)),
    ]


def _pendant(rng: np.random.Generator, ceiling: float) -> list[_Solid]:
    low, radius, tall = ceiling - rng.uniform(0.5, 0.8), rng.uniform(0.16, 0.3), rng.uniform(0.15, 0.28)
    cloth = _Paint(_colour(rng, (0.0, 0.17), (0.05, 0.6), (0.7, 1.0)), emission=0.7)
    shade = _frustum("lamp", cloth, radius, (low, low + tall), rng.uniform(0.2, 0.8))
    return [shade, _frustum("lamp", _paint(rng, 0.1), 0.01, (low + tall, ceiling))]


def _plant(rng: np.random.Generator, height: float | None = None) -> list[_Solid]:
    """A potted bush or conifer; of the given height when it stands on furniture."""
    size = height or rng.uniform(0.7, 1.4)
    pot, radius = size * rng.uniform(0.25, 0.35), size * rng.uniform(0.13, 0.18)
    clay = _Paint(_colour(rng, (0.0, 0.1), (0, 0.75), (0.35, 0.95)))
    leaf = _colour(rng, (0.2, 0.38), (0.4, 0.8), (0.35, 0.65))
    green = _Paint(leaf, _dimmed(leaf, 0.25), "leaves", 0.035)
    solids = [_frustum("plant", clay, 0.75 * radius, (0, pot), 1.35)]
    if rng.random() < 0.3:
        return [*solids, _frustum("plant", green, 1.3 * radius, (pot, size), 0.08)]
    for _ in range(rng.integers(4, 8)):
        x, y, half = *rng.uniform(-0.8, 0.8, size=2) * radius, size * rng.uniform(0.12, 0.2)
        centre = x, y, rng.uniform(pot + 0.2 * size, 0.85 * size)
        solids.append(_Solid("ellipsoid", "plant", green, centre, (half, 0.8 * half, half), rng.uniform(0, np.pi)))
    return [*solids, _frustum("plant", green, 0.2 * radius, (pot, pot + 0.4 * size))]


def _ball(rng: np.random.Generator, height: float | None = None) -> list[_Solid]:
    """A ball for the floor, or one about half the given height."""
    radius = 0.28 * height if height else rng.uniform(0.12, 0.36)
    paint = _paint(rng, 1.0, "stripes" if rng.random() < 0.6 else "plain", 0.6 * radius)
    return [_Solid("ellipsoid", "ball", paint, (0, 0, radius), (radius, radius, radius))]


# --- Composition ---


def _shell(rng: np.random.Generator) -> tuple[_Paint, _Paint, _Paint]:
    """Floor, wall and ceiling."""
    kind = str(rng.choice(("planks", "tiles", "checks", "speckle"), p=(0.45, 0.2, 0.1, 0.25)))
    floor = _wood(rng, "planks", rng.uniform(0.09, 0.18))
    if kind != "planks":
        base = _colour(rng, (0, 1) if kind == "speckle" else (0.0, 0.15), (0, 0.45), (0.35, 0.9))
        scale = rng.uniform(0.01, 0.03) if kind == "speckle" else rng.uniform(0.25, 0.6)
        floor = _Paint(base, _dimmed(base, rng.uniform(0.35, 0.7)), kind, scale)
    kind = str(rng.choice(("plain", "stripes", "bricks", "speckle"), p=(0.6, 0.15, 0.12, 0.13)))
    base = _colour(rng, (0, 1), (0, 0.35), (0.6, 1.0))
    scale = 0.03 if kind == "speckle" else rng.uniform(0.1, 0.5)
    wall = _Paint(base, _dimmed(base, rng.uniform(0.75, 0.95)), kind, scale)
    if kind == "bricks":
        base, mortar = _colour(rng, (-0.02, 0.08), (0.1, 0.6), (0.5, 0.9)), _colour(rng, (0, 1), (0, 0.1), (0.6, 0.9))
        wall = _Paint(base, mortar, kind, rng.uniform(0.2, 0.3))
    return floor, wall, _Paint(_colour(rng, (0.0, 0.2), (0, 0.08), (0.85, 1.0)))


def _bounds(solids: Sequence[_Solid]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the axis-aligned bounding box, float64 [3] each."""
    centres = np.array([solid.centre for solid in solids])
    turned = [np.abs([_turn(s.extent * (1, sign, 1), s.yaw) for sign in (-1, 1)]).max(axis=0) for s in solids]
    return (centres - turned).min(axis=0), (centres + turned).max(axis=0)


def _compose(rng: np.random.Generator) -> _Scene:
    """Draws a room, a camera and the furniture that fits, without knowing the image size."""
    width, length, height = size = rng.uniform((3.2, 3.6, 2.4), (6.4, 6.6, 3.0))
    eye = np.array((width * rng.uniform(0.25, 0.75), rng.uniform(0.35, 0.8), rng.uniform(1.2, 1.7)))
    yaw = np.arctan2(eye[0] - width * rng.uniform(0.2, 0.8), length * rng.uniform(0.75, 1.0) - eye[1])
    pitch, roll, focal = np.radians(rng.uniform(3, 18)), np.radians(rng.normal(0, 0.8)), rng.uniform(0.66, 0.9)
    forward = _turn(np.array((0.0, np.cos(pitch), -np.sin(pitch))), yaw)
    level = _turn(np.array((1.0, 0.0, 0.0)), yaw)
    right = np.cos(roll) * level + np.sin(roll) * np.cross(forward, level)
    solids: list[_Solid] = []
    taken = [(eye - (0.8, 0.8, 3.0), eye + (0.8, 0.8, 3.0))]  # nothing stands in the photographer's way

    def claim(group: list[_Solid]) -> bool:
        """Adds the group if it lies inside the room and its bounding box meets no other."""
        low, high = _bounds(group)
        if (low < -1e-6).any() or (high > size + 1e-6).any():
            return False
        if any((low < far + 0.03).all() and (high > near - 0.03).all() for near, far in taken):
            return False
        solids.extend(group)
        taken.append((low, high))
        return True

    def in_view(x: float, y: float) -> bool:
        ahead = (np.array((x, y)) - eye[:2]) @ forward[:2]
        return ahead > 1.5 and abs((np.array((x, y)) - eye[:2]) @ level[:2]) < 0.45 / focal * ahead

    def hang(group: list[_Solid]) -> None:
        """Tries to put the back of the group against the far, left or right wall."""
        for wall in rng.choice(3, size=12, p=(0.5, 0.25, 0.25)):
            turned = _moved(group, yaw=(0, np.pi / 2, -np.pi / 2)[wall])
            low, high = _bounds(turned)
            x = (rng.uniform(0, width), -low[0], width - high[0])[wall]
            y = length - high[1] if wall == 0 else rng.uniform(0.2, 0.95) * length
            if in_view(x, y) and claim(_moved(turned, x, y)):
                return

    def stand(group: list[_Solid]) -> None:
        """Tries to put the group somewhere on the floor."""
        for x, y, turn in rng.uniform((0, 0, -np.pi), (width, length, np.pi), size=(25, 3)):
            if in_view(x, y) and claim(_moved(group, x, y, yaw=turn)):
                return

    if rng.random() < 0.7:  # a skirting board, part of the wall
        trim, tall = _paint(rng, 0.1), rng.uniform(0.06, 0.14)
        solids.append(_box("wall", trim, (0, width), (length - 0.015, length), (0, tall)))
        solids += [_box("wall", trim, (x, x + 0.015), (0, length), (0, tall)) for x in (0, width - 0.015)]
    light = size * (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.7), 1.0) - (0, 0, 0.06)
    if rng.random() < 0.5 and claim(_moved(_pendant(rng, height), *light[:2])):
        light[2] = taken[-1][0][2] - 0.03
    for build, chances in (
        (_door, (0.4, 0.6)),  # probabilities of trying 0, 1, 2, ... of them
        (_cabinet, (0.25, 0.5, 0.25)),
        (_window, (0.2, 0.55, 0.25)),
        (_picture, (0.25, 0.4, 0.2, 0.15)),
    ):
        for _ in range(rng.choice(len(chances), p=chances)):
            hang(build(rng))
    for build, chance in (_table, 0.75), (_chair, 0.35), (_lamp, 0.4), (_plant, 0.5), (_ball, 0.5), (_ball, 0.3):
        if rng.random() < chance:
            stand(build(rng))
    turns, warmth = 2 * np.pi * np.arange(_LIGHT_POINTS) / _LIGHT_POINTS, rng.uniform(-0.08, 0.12)
    return _Scene(
        size=size,
        shell=_shell(rng),
        solids=solids,
        lights=light + 0.16 * np.stack([np.cos(turns), np.sin(turns), 0 * turns], axis=1),
        light_colour=rng.uniform(0.8, 1.15) * np.array((1 + warmth, 1.0, 1 - warmth)),
        ambient=rng.uniform(0.3, 0.5),
        eye=eye,
        axes=np.stack([right, np.cross(forward, right), forward]),
        focal=focal,
        vignette=rng.uniform(0.1, 0.35),
        noise=rng.uniform(1.5, 4.0),
    )


def _checked(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an int, got {value!r} of type {type(value).__name__}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")
    return int(value)


def render_room(seed: int, height: int = 192, width: int = 256) -> Room:
    """Renders the room of a seed.

    Args:
        seed: Any non-negative int. It alone decides the room and the camera; another size shows the same room, and
            the longer side keeps its field of view.
        height: Rows of the image, at least 16.
        width: Columns of the image, at least 16.

    Returns:
        A `Room`, bit for bit the same on every call with the same arguments.

    Raises:
        TypeError: If an argument is not an int.
        ValueError: If `seed` is negative or a side is shorter than 16 pixels.
    """
    seed, height, width = _checked("seed", seed, 0), _checked("height", height, 16), _checked("width", width, 16)
    rng = np.random.default_rng(seed)
    scene = _compose(rng)
    pixel = 1.0 / (scene.focal * max(height, width))
    v, u = (np.indices((height, width)) + 0.5 - np.array([height, width])[:, None, None] / 2).reshape(2, -1)

    def render(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Renders points given in pixels from the image centre."""
        return _render_rays(scene, scene.axes.T @ np.array((u * pixel, v * pixel, np.ones_like(u))), pixel)

    colour, depth, surface = render(u, v)
    # Outlines alias the most: give their pixels the mean colour of four rays. Labels and depth stay single rays,
    # because the mean of two depths lies on neither surface.
    grid, outline = surface.reshape(height, width), np.zeros((height, width), dtype=bool)
    across, down = grid[:, 1:] != grid[:, :-1], grid[1:] != grid[:-1]
    for half, change in (outline[:, 1:], across), (outline[:, :-1], across), (outline[1:], down), (outline[:-1], down):
        half |= change
    pixels = np.flatnonzero(outline)
    du, dv = np.array([(-1, -1, 1, 1), (-1, 1, -1, 1)])[..., None] / 4
    fine, _, _ = render((u[pixels] + du).ravel(), (v[pixels] + dv).ravel())
    colour[:, pixels] = np.minimum(fine, 1.0).reshape(3, 4, pixels.size).mean(axis=1)

    colour *= 1.0 - scene.vignette * (u * u + v * v) * 4 / (height**2 + width**2)
    image = 255 * np.clip(colour, 0, 1) ** (1 / 2.2) + rng.normal(0, scene.noise, size=colour.shape)
    labels = np.array([_LABEL2ID[solid.label] for solid in scene.solids] + [0, 1, 2])  # -3, -2, -1 index the shell
    return Room(
        image=np.clip(np.round(image), 0, 255).T.reshape(height, width, 3).astype(np.uint8, order="C"),
        segmentation=labels[grid].astype(np.uint8),
        depth=depth.astype(np.float32).reshape(height, width),
    )


def _triptych(room: Room) -> np.ndarray:
    """Image, class colours and depth (near is bright) side by side, uint8 [H, 3 * W, 3]."""
    hues = [colorsys.hsv_to_rgb(index * 0.618 % 1.0, 0.65, 0.95 - 0.3 * (index % 2)) for index in ID2LABEL]
    classes = (255 * np.array(hues)).astype(np.uint8)[room.segmentation]
    nearness = (255 * (1.0 - room.depth / MAX_DEPTH)).astype(np.uint8)
    return np.concatenate([room.image, classes, np.repeat(nearness[..., None], 3, axis=2)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a contact sheet of rooms: image, classes and depth.")
    parser.add_argument("--out", default="rooms.png", help="PNG file to write (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=8, help="number of rooms, from seed 0 (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there already")
    arguments = parser.parse_args()
    if os.path.lexists(arguments.out) and not arguments.overwrite:
        parser.error(f"--out: {arguments.out} is there already; give another name, or --overwrite")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    sheet = np.concatenate([_triptych(render_room(seed)) for seed in range(arguments.seeds)])
    Image.fromarray(sheet).save(arguments.out)


if __name__ == "__main__":
    main()
