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
"""Furniture models of Debian's package `sweethome3d-furniture`: catalogue, classes, split and triangles.

Lengths are metres. A model stands in its own frame with x to its right, y to its back and z up; the middle of its
footprint is the origin, its lowest point z = 0, and its front looks along -y.
"""

import hashlib
import io
import re
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image


FURNITURE = Path("/usr/share/sweethome3d/furniture")  # where the Debian package puts it
LICENCES = {
    "BlendSwap-CC-0": "CC0", "BlendSwap-CC-BY": "CC-BY-3.0", "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US", "Scopia": "CC-BY-3.0",
}  # fmt: skip
INSTALL = "apt-get install sweethome3d-furniture"

LABELS = (
    "floor wall ceiling window door picture rug chair table sofa bed cabinet shelf lamp plant screen appliance sink "
    "toilet radiator person"
).split()
ID2LABEL: dict[int, str] = dict(enumerate(LABELS))
# Things of no class (`other`) stand in rooms, too, and are not annotated.
LABEL2ID: dict[str, int] = {label: key for key, label in ID2LABEL.items()} | {"other": 255}

# The first pattern that the name of a model contains decides; what none fits is `other`. Outdoor things, vehicles,
# animals, people who lie or sit, and what needs a wall or a table top of its own to make sense are no furniture.
_UNUSED = (
    r"shutter|elevator|garage|screen door|shower door|glass door$|escalator|staircase|parking|arrow|chimney|fireplace|"
    r"ceiling fan|rigged fan|lamppost|street|park light|outdoor|porch|plug|switch|socket|pipe|contemporary living|"
    r"island|sitting|lying|"
    r"holding|dog|cat|chicken|horse|rabbit|boy|girl|hedge|railing|fence|container|hood|corner cabinet|"
    r"^tool|^tape|mezzanine|bunk|spiral|pool|swimming|track lights|fluorescent|child hut|tatami|flashlight|blind|"
    r"curtain|mannequin|water heater|furnace|air condition|smoke|cctv|surveillance|emergency|intercom|towel|hanger|"
    r"dispenser|shower|football table|washer|opened convertible|air mattress|sleeping bag|bathtub|^bath$|jacuzzi|"
    r"workbench|abdominal|tv stand|remote|tablet|beach|deck chair|concrete|camping|mower|wheelbarrow|induction|"
    r"^basin|^screen$|^stove$"
)
_PATTERNS = (
    ("rug", r"\brug\b|carpet|bathmat|doormat"),
    ("window", r"window"),
    ("door", r"door$|^door|exterior door|door with panes"),
    ("picture", r"^frame |white board|calendar"),
    ("lamp", r"lamp\b|light|lantern"),
    ("appliance", r"fridge|refrigerator|oven|stove|cooker|washing|dryer|freezer|microwave|dishwasher"),
    ("sink", r"sink|washbasin|vanity|lavatory|^basin"),
    ("toilet", r"toilets unit|bidet|urinal"),
    ("radiator", r"radiator"),
    ("screen", r"\btv\b|^tv|screen|imac|ibook|laptop|flat tv"),
    ("shelf", r"shelves|shelf|bookcase"),
    ("cabinet", r"cabinet|wardrobe|cupboard|dresser|chest$|locker|tv stand|clothes rack|bedside|safe|drawers"),
    ("chair", r"armchair|puff"),
    ("sofa", r"sofa|couch|futon couch"),
    ("chair", r"chair|stool|class seat|bench$"),
    ("bed", r"\bbed\b|futon|crib"),
    ("table", r"table$|table |^table|desk|workbench"),
    ("plant", r"plant|ficus|bonsai|cactus|flowers|tulips|orchids|lily|yucca|bamboo|bush|christmas tree|spathiphyllum"),
    ("person", r"^female$|^male$"),
)
_OTHER_EXTERIOR = ("Exterior", "Vehicles", "Staircases", "Characters")
_EXTERIOR_KEPT = r"chair|table|bench|plant|armchair|sofa|flower|bush|bamboo|ficus|rattan"
_NOT_THIS = {"chair": r"wheelchair|piano", "table": r"tennis|table fan|^pool", "plant": r"plant box"}
MAX_TRIANGLES = 120_000


@dataclass(frozen=True)
class Model:
    """One row of the catalogue. `size` is (width, depth, height), `top` the height of the surface that things may
    stand on (`None`: nothing may), `elevation` that of its foot above the floor."""

    key: str
    name: str
    label: str
    size: tuple[float, float, float]
    top: float | None
    elevation: float
    creator: str
    licence: str
    archive: str
    path: str
    rotation: tuple[float, ...] | None


@dataclass
class Mesh:
    """Triangles of a model in its own frame, scaled to a box of 1 x 1 x 1.

    `vertices`, `normals`: float32 [n, 3, 3]; `uv`: float32 [n, 3, 2]; `material`: int32 [n], into `colors`
    (float32 [m, 3], linear), `opacity` (float32 [m]) and `textures` (uint8 [h, w, 3] or `None`).
    """

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    material: np.ndarray
    colors: np.ndarray
    opacity: np.ndarray
    textures: list = field(default_factory=list)
    # Of varied rooms: a `Paint` or `None` for each material, whose place is that on the surface in metres; and its
    # reflectance (head-on) and roughness, float32 [m, 2].
    paints: list = field(default_factory=list)
    gloss: np.ndarray | None = None


@dataclass(frozen=True)
class MadeModel(Model):
    """A model that isn't in a file, but was made: with its mesh."""

    mesh: Mesh | None = field(default=None, compare=False)


def label_of(name: str, category: str) -> str | None:
    """Class of a model by its name and category in the catalogue; `None`: not used in rooms."""
    lower = name.lower()
    if re.search(_UNUSED, lower):
        return None
    if category in _OTHER_EXTERIOR and not (
        re.search(_EXTERIOR_KEPT, lower) or (category == "Characters" and lower in ("male", "female"))
    ):
        return None
    for label, pattern in _PATTERNS:
        if re.search(pattern, lower) and not re.search(_NOT_THIS.get(label, "^$"), lower):
            return label
    return "other"


@lru_cache(maxsize=1)
def read_catalogue(folder: Path = FURNITURE) -> list[Model]:
    """All models of the archives in `folder` that rooms are made of, ordered by key.

    Raises:
        FileNotFoundError: there are no archives.
    """
    archives = sorted(Path(folder).glob("*.sh3f"))
    if not archives:
        raise FileNotFoundError(f"no furniture (*.sh3f) in {folder}; on Debian: {INSTALL}")
    models = []
    for archive in archives:
        with zipfile.ZipFile(archive) as file:
            text = file.read("PluginFurnitureCatalog.properties").decode("latin-1")
        rows: dict[int, dict] = defaultdict(dict)
        for name, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
            rows[int(number)][name] = value
        licence = LICENCES[archive.stem]
        for row in rows.values():
            label = label_of(row["name"], row["category"])
            if label is None:
                continue
            top = float(row.get("dropOnTopElevation", -1)) / 100
            models.append(
                Model(
                    key=row["id"], name=row["name"], label=label,
                    size=tuple(float(row[edge]) / 100 for edge in ("width", "depth", "height")),
                    top=top if top > 0 else None, elevation=float(row.get("elevation", 0)) / 100,
                    creator=row["creator"], licence=licence, archive=str(archive), path=row["model"].lstrip("/"),
                    rotation=tuple(map(float, row["modelRotation"].split())) if "modelRotation" in row else None,
                )
            )  # fmt: skip
    return sorted(models, key=lambda model: model.key)


def split_models(models: list[Model]) -> dict[str, list[Model]]:
    """Models of the splits: of each class about 15 % of the files (at least one) for `validation`, as many for `test`,
    the rest for `train`, by the order of a hash of their keys."""
    classes: dict[str, list[Model]] = defaultdict(list)
    for model in sorted(models, key=lambda model: hashlib.sha256(model.key.encode()).hexdigest()):
        classes[model.label].append(model)
    splits: dict[str, list[Model]] = {"train": [], "validation": [], "test": []}
    for own in classes.values():
        held = max(1, round(0.15 * len(own)))
        splits["test"] += own[:held]
        splits["validation"] += own[held : 2 * held]
        splits["train"] += own[2 * held :]
    return {split: sorted(own, key=lambda model: model.key) for split, own in splits.items()}


# ---- triangles ----


def load_mesh(model: Model) -> Mesh | None:
    """The model's triangles; `None` if there are too many of them or none."""
    if isinstance(model, MadeModel):
        return model.mesh
    return _load_mesh(model.archive, model.path, model.rotation)


@lru_cache(maxsize=600)
def _load_mesh(archive_path: str, path: str, rotation: tuple[float, ...] | None) -> Mesh | None:
    with zipfile.ZipFile(archive_path) as archive:
        corners, owners, names, library = _parse_obj(archive.read(path).decode("latin-1"))
        if corners is None or len(corners[0]) > MAX_TRIANGLES:
            return None
        materials = _read_materials(archive, path.rsplit("/", 1)[0], library, names)
    vertices, normals, uv = corners
    if rotation is not None:
        turn = np.array(rotation, dtype=np.float32).reshape(3, 3)
        vertices, normals = vertices @ turn.T, normals @ turn.T
    # The files have y up and the front at +z.
    axes = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float32)
    vertices, normals = vertices @ axes.T, normals @ axes.T
    low, high = vertices.reshape(-1, 3).min(axis=0), vertices.reshape(-1, 3).max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], dtype=np.float32)
    vertices, normals = (vertices - middle) / extent, normals * extent
    colors, opacity, textures = materials
    return Mesh(vertices.astype(np.float32), normals.astype(np.float32), uv, owners, colors, opacity, textures)


def _parse_obj(text: str):
    """Corners (positions, normals, texture coordinates) of all triangles, their materials, the materials' names, and
    the material file."""
    positions, textures, normals, faces, owners, names = [], [], [], [], [], {}
    current, library = 0, None
    for line in text.splitlines():
        parts = line.split()
        if not parts:
            continue
        kind = parts[0]
        if kind == "v":
            positions.append(parts[1:4])
        elif kind == "vt":
            textures.append(parts[1:3])
        elif kind == "vn":
            normals.append(parts[1:4])
        elif kind == "f":
            corners = [corner.split("/") for corner in parts[1:]]
            for k in range(1, len(corners) - 1):
                faces.append((corners[0], corners[k], corners[k + 1]))
                owners.append(current)
        elif kind == "usemtl":
            name = line.strip().split(None, 1)[1] if len(parts) > 1 else ""
            current = names.setdefault(name, len(names))
        elif kind == "mtllib" and len(parts) > 1:
            library = line.strip().split(None, 1)[1]
    if not faces or not positions:
        return None, None, None, None
    names = names or {"": 0}

    def indices(place: int, count: int) -> np.ndarray:
        found = [int(c[place]) if len(c) > place and c[place] else 0 for face in faces for c in face]
        array = np.array(found, dtype=np.int64).reshape(-1, 3)
        return np.where(array > 0, array - 1, np.where(array < 0, array + count, -1))

    position = np.array(positions, dtype=np.float32)[indices(0, len(positions))]
    edges = np.cross(position[:, 1] - position[:, 0], position[:, 2] - position[:, 0])
    flat = np.repeat((edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-12))[:, None], 3, axis=1)
    own = indices(2, len(normals))
    normal = np.where((own >= 0)[..., None], np.array(normals or [[0, 0, 0]], dtype=np.float32)[own], flat)
    own = indices(1, len(textures))
    uv = np.where((own >= 0)[..., None], np.array(textures or [[0, 0]], dtype=np.float32)[own], 0)
    return (position, normal, uv.astype(np.float32)), np.array(owners, dtype=np.int32), list(names), library


def _read_materials(archive: zipfile.ZipFile, folder: str, library: str | None, names: list[str]):
    found: dict[str, dict] = {}
    files = {name.lower(): name for name in archive.namelist()}
    path = files.get(f"{folder}/{library}".lower()) if library else None
    current: dict = {}
    for line in archive.read(path).decode("latin-1").splitlines() if path else ():
        parts = line.split()
        if len(parts) < 2:
            continue
        if parts[0] == "newmtl":
            current = found.setdefault(line.strip().split(None, 1)[1], {})
        elif parts[0] == "map_Kd":
            current["map"] = line.strip().split()[-1].replace("\\", "/").rsplit("/", 1)[-1]
        elif parts[0] in ("Kd", "d", "Tr"):
            current[parts[0]] = [float(value) for value in parts[1:4]]
    colors, opacity, textures = [], [], []
    for name in names:
        row = found.get(name, {})
        texture = files.get(f"{folder}/{row['map']}".lower()) if "map" in row else None
        pixels = None
        if texture is not None:
            with Image.open(io.BytesIO(archive.read(texture))) as picture:
                picture = picture.convert("RGB")
                picture.thumbnail((256, 256))  # a room's picture shows no more of it
                pixels = np.asarray(picture)
        # A mirror or a metal often has a black diffuse colour: a little grey stands in for what it would reflect.
        color = np.clip(np.array(row.get("Kd", [0.7, 0.7, 0.7]), dtype=np.float32), 0.03, 0.95)
        colors.append(color**2.2 if pixels is None else np.ones(3, dtype=np.float32))
        opacity.append(row["d"][0] if "d" in row else 1 - row["Tr"][0] if "Tr" in row else 1.0)
        textures.append(pixels)
    return np.array(colors, dtype=np.float32), np.array(opacity, dtype=np.float32), textures
