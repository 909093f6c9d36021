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
"""Depth from a rectified pair of images: disparity both ways by OpenCV's SGBM, kept where the two agree.

`cv2` is imported where it is needed: depth from a disparity that is there already does without it.
"""

import numpy as np


MAX_DISPARITY = 128  # pixels that are searched, a multiple of 16
TOLERANCE = 1.0  # pixels by which the disparities of the same point may differ
BLOCK_SIZE = 5  # pixels
MIN_CONTRAST = 1.0  # grey levels of standard deviation in a block of 9x9: what has less can't be matched
SMALLEST_ISLAND = 200  # pixels


def match(left: np.ndarray, right: np.ndarray, max_disparity: int = MAX_DISPARITY) -> np.ndarray:
    """How far to the left `right` has what each pixel of `left` shows, by semi-global matching.

    Args:
        left, right: `uint8 [height, width]`, rectified: what one has in a row, the other has in the same row.
        max_disparity: pixels, a multiple of 16.

    Returns:
        `float32 [height, width]` in pixels; NaN where nothing matches well.
    """
    import cv2

    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=max_disparity,
        blockSize=BLOCK_SIZE,
        P1=8 * BLOCK_SIZE**2,  # the penalties that OpenCV's documentation proposes for one channel
        P2=32 * BLOCK_SIZE**2,
        uniquenessRatio=15,
        mode=cv2.STEREO_SGBM_MODE_HH,  # all eight directions: fewer streaks than with three,
    )
    # A column of padding for each disparity: without it, the matcher leaves out as many columns at the left.
    padded = [np.pad(image, ((0, 0), (max_disparity, 0)), mode="edge") for image in (left, right)]
    disparity = matcher.compute(*padded)[:, max_disparity:].astype(np.float32) / 16  # fixed point, 4 bits
    return np.where(disparity > 0, disparity, np.nan).astype(np.float32)


def agreeing(disparity: np.ndarray, back: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """The left-right check: a disparity is kept where the pixel that it leads to leads back.

    Args:
        disparity: of the left image, pixels `[height, width]`, NaN where unknown.
        back: of the right image: how far to the right the left one has the same, likewise.
        tolerance: pixels by which the two may differ.

    Returns:
        `disparity`, NaN where it is not confirmed: the match is outside of the right image, unknown, or another.
    """
    rows, columns = np.indices(disparity.shape)
    target = columns - np.where(np.isnan(disparity), 0, np.rint(disparity)).astype(int)
    found = np.where(target >= 0, back[rows, np.maximum(target, 0)], np.nan)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(disparity - found) <= tolerance, disparity, np.nan)


def contrast(image: np.ndarray) -> np.ndarray:
    """Standard deviation in the block of 9x9 pixels around each of them, in grey levels: `float32 [height, width]`."""
    import cv2

    values = image.astype(np.float32)
    mean, square = (cv2.blur(moment, (9, 9)) for moment in (values, values**2))
    return np.sqrt(np.maximum(square - mean**2, 0))


def stereo_disparity(left: np.ndarray, right: np.ndarray, max_disparity: int = MAX_DISPARITY) -> np.ndarray:
    """Disparity of the left image where it can be trusted, NaN elsewhere; arguments as for [`match`].

    It has to be confirmed by [`agreeing`], where there is something to see ([`contrast`]), and be no island of a few
    pixels.

    Raises:
        ValueError: the images differ in size, or are not `uint8 [height, width]`.
    """
    for name, image in (("left", left), ("right", right)):
        if image.dtype != np.uint8 or image.ndim != 2:
            raise ValueError(f"`{name}` must be uint8 [height, width], got {image.dtype} {list(image.shape)}")
    if left.shape != right.shape:
        raise ValueError(f"`left` and `right` must have one size, got {list(left.shape)} and {list(right.shape)}")
    import cv2

    disparity = match(left, right, max_disparity)
    # Mirrored, the right image is a left one.
    back = match(right[:, ::-1], left[:, ::-1], max_disparity)[:, ::-1]
    kept = np.where(contrast(left) >= MIN_CONTRAST, agreeing(disparity, back), np.nan)
    fixed = np.where(np.isnan(kept), -16, np.rint(kept * 16)).astype(np.int16)
    cv2.filterSpeckles(fixed, newVal=-16, maxSpeckleSize=SMALLEST_ISLAND, maxDiff=16)
    return np.where(fixed < 0, np.nan, kept).astype(np.float32)


def depth_of_disparity(
    disparity: np.ndarray,
    focal_length: float,
    baseline: float,
    offset: float = 0.0,
    max_depth: float = float("inf"),
) -> np.ndarray:
    """Metres along the optical axis: `focal_length * baseline / (disparity + offset)`.

    Args:
        disparity: pixels, NaN or infinite where unknown.
        focal_length: of the rectified images, pixels.
        baseline: distance of the two cameras, metres.
        offset: column of the right camera's principal point minus that of the left one's: what a point at infinity
            has as disparity, with the other sign.
        max_depth: metres; what is further is left out, as an error of part of a pixel is large there.

    Returns:
        `float32`, 0 where unknown.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = focal_length * baseline / (np.asarray(disparity, dtype=np.float64) + offset)
        known = np.isfinite(disparity) & np.isfinite(depth) & (depth > 0) & (depth <= max_depth)
    return np.where(known, depth, 0).astype(np.float32)
