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
"""Small data sets in the official layouts of the published protocols, with values that are easy to work out by hand.

Class maps are 2x3: four pixels of class A, one of class B, one that is ignored. Depth comes in two images of 48x64: 64
pixels of the first are 2.5 m away, 16 of the second 5 m; where a protocol has a crop or a cap, pixels of 40 m lie
outside of it, which must not count. Masks are a box of 5x4 and one of 2x2 in an image of 8x6.
"""

import json
import pickle

import numpy as np
import PIL.Image

from tiny import make_image


HEIGHT, WIDTH = 48, 64
NEAR, FAR, BEYOND = 2.5, 5.0, 40.0
BASELINE, FX = 0.2, 50.0  # of Cityscapes: 10 metres times pixels


def save(path, values, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.array(values, dtype)).save(path)


def save_image(path, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(height, width).save(path)


def class_map(a, b, ignored):
    return [[a, a, a], [a, b, ignored]]


def depth_maps(with_beyond=True):
    """Metres of both images, 0 where nothing was measured."""
    near, far = np.zeros((2, HEIGHT, WIDTH), np.float32)
    near[28:36, 20:28], far[28:32, 20:24] = NEAR, FAR
    if with_beyond:
        for metres in (near, far):
            metres[0] = BEYOND
    return near, far


# ---- classes ----


def write_ade20k(root):
    save_image(root / "images/validation/ADE_val_00000001.jpg", 2, 3)
    save(root / "annotations/validation/ADE_val_00000001.png", class_map(1, 2, 0))


def write_coco_stuff(root):
    save_image(root / "val2017/000000000139.jpg", 2, 3)
    save(root / "stuffthingmaps/val2017/000000000139.png", class_map(0, 1, 255))


def write_voc20(root):
    save_image(root / "VOC2012/JPEGImages/2007_000033.jpg", 2, 3)
    lists = root / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000033\n")
    save(root / "VOC2012/SegmentationClass/2007_000033.png", class_map(1, 2, 0))  # 0 is the background


def write_context59(root):
    save_image(root / "VOC2010/JPEGImages/2008_000002.jpg", 2, 3)
    lists = root / "VOC2010/ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n")
    save(root / "VOC2010/SegmentationClassContext/2008_000002.png", class_map(1, 2, 0))


def write_cityscapes(root):
    name = "lindau/lindau_000000_000019"
    save_image(root / f"leftImg8bit/val/{name}_leftImg8bit.png", 2, 3)
    save(root / f"gtFine/val/{name}_gtFine_labelIds.png", class_map(7, 8, 0))  # road, sidewalk, unlabeled


# ---- depth ----


def write_nyuv2(root):
    for number, metres in enumerate(depth_maps()):
        save_image(root / f"test/rgb_{number:05d}.png")
        save(root / f"test/sync_depth_{number:05d}.png", metres * 1000, np.uint16)


def write_kitti(root):
    day, drive, lines = "2011_09_26", "2011_09_26_drive_0002_sync", []
    for number, metres in enumerate(depth_maps()):
        name = f"{number:010d}.png"
        save_image(root / f"raw/{day}/{drive}/image_02/data/{name}")
        save(
            root / f"data_depth_annotated/val/{drive}/proj_depth/groundtruth/image_02/{name}", metres * 256, np.uint16
        )
        lines.append(f"{day}/{drive}/image_02/data/{name} {drive}/proj_depth/groundtruth/image_02/{name} 721.5377\n")
    (root / "kitti_eigen_test_files_with_gt.txt").write_text("".join(lines))
    (root / f"raw/{day}/calib_cam_to_cam.txt").write_text(
        "P_rect_02: 7.215377e+02 0 6.1e+02 0 0 7.2e+02 1 0 0 0 1 0\n"
    )


def write_ddad(root):
    matrices = {}
    for number, metres in enumerate(depth_maps(with_beyond=False)):
        name = f"000150/rgb/CAMERA_01/{number}.png"
        save_image(root / name)
        save(root / name.replace("rgb", "depth"), metres * 256, np.uint16)
        matrices[name] = [[2181.5, 0, 2], [0, 2181.6, 2], [0, 0, 1]]
    (root / "ddad_intrinsics.json").write_text(json.dumps(matrices))


def write_ibims1(root):
    for number, metres in enumerate(depth_maps()):
        save_image(root / f"rgb/room_{number}.png")
        save(root / f"depth/room_{number}.png", (metres * (65535 / 50)).round(), np.uint16)
        for mask in ("mask_invalid", "mask_transp"):
            save(root / f"{mask}/room_{number}.png", np.full((HEIGHT, WIDTH), 255))
        (root / "calib").mkdir(exist_ok=True)
        (root / f"calib/room_{number}.txt").write_text("550.39,551.2,322.5,241.1\n")


def write_cityscapes_depth(root):
    for number, metres in enumerate(depth_maps(with_beyond=False)):
        name = f"lindau/lindau_{number:06d}_000019"
        save_image(root / f"leftImg8bit/val/{name}_leftImg8bit.png")
        disparity = np.divide(BASELINE * FX, metres, out=np.zeros_like(metres), where=metres > 0)
        values = np.where(metres > 0, disparity * 256 + 1, 0)
        save(root / f"disparity/val/{name}_disparity.png", values, np.uint16)
        camera = root / f"camera/val/{name}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        camera.write_text(json.dumps({"extrinsic": {"baseline": BASELINE}, "intrinsic": {"fx": FX}}))


# ---- referring ----


def write_refs(root, name, split_by, splits):
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 6, "width": 8}
    save_image(root / "train2014" / image["file_name"], 6, 8)
    boxes = {1: (0, 0, 5, 4), 2: (1, 1, 3, 3)}
    annotations = [
        {"id": key, "image_id": 9, "category_id": 1, "iscrowd": 0, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        for key, (x0, y0, x1, y1) in boxes.items()
    ]
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    folder = root / name
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps(content))
    refs = [
        {"ann_id": key, "image_id": 9, "ref_id": key, "split": split, "sentences": [{"sent": f"number {key}"}]}
        for split in splits
        for key in boxes
    ]
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, 2))


# ---- words ----


def write_coco_detection(root):
    """Two people in one image, 16x16 and 4x4 pixels."""
    image = {"id": 139, "file_name": "000000000139.jpg", "height": 32, "width": 48}
    save_image(root / "val2017" / image["file_name"], 32, 48)
    boxes = [[8, 8, 16, 16], [40, 0, 4, 4]]
    annotations = [
        {"id": number, "image_id": 139, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
        for number, box in enumerate(boxes, 1)
    ]
    for row in annotations:
        x, y, width, height = row["bbox"]
        row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))


def write_tallyqa(root):
    """Two questions, whose answers are 1 and 3."""
    save_image(root / "VG_100K/1.jpg", 32, 48)
    rows = [
        {"image": "VG_100K/1.jpg", "question": f"How many {name}?", "answer": answer, "issimple": True}
        for name, answer in (("dogs", 1), ("cats", 3))
    ]
    (root / "test.json").write_text(json.dumps(rows))


TREES = {
    "ade20k": write_ade20k,
    "coco_stuff": write_coco_stuff,
    "context59": write_context59,
    "voc20": write_voc20,
    "cityscapes": write_cityscapes,
    "nyuv2": write_nyuv2,
    "kitti_eigen": write_kitti,
    "ddad": write_ddad,
    "ibims1": write_ibims1,
    "cityscapes_depth": write_cityscapes_depth,
    "refcoco": lambda root: write_refs(root, "refcoco", "unc", ("val", "testA", "testB")),
    "refcoco+": lambda root: write_refs(root, "refcoco+", "unc", ("val", "testA", "testB")),
    "refcocog": lambda root: write_refs(root, "refcocog", "umd", ("val", "test")),
    "coco_detection": write_coco_detection,
    "tallyqa": write_tallyqa,
}
