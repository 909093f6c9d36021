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
"""Print the table of colours that `drawing_densemllm.py` holds.

    pip install scikit-image
    python tools/make_palette.py

Glasbey's way (Glasbey et al. 2007, "Colour displays for categorical images"): each colour is the one of sRGB that is
farthest from black, white and all colours before it, so that the first k colours are well apart for every k. The
distance is CIEDE2000, as scikit-image computes it; the grid has a colour every 8 steps of a channel.
"""

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab


COUNT = 256


def main() -> None:
    steps = np.append(np.arange(0, 256, 8), 255).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(grid)
    nearest = np.minimum(deltaE_ciede2000(lab, lab[:1]), deltaE_ciede2000(lab, lab[-1:]))  # black and white
    colors = []
    for _ in range(COUNT):
        index = int(nearest.argmax())
        colors.append(grid[index].tobytes().hex())
        nearest = np.minimum(nearest, deltaE_ciede2000(lab, lab[index : index + 1]))
    for start in range(0, COUNT, 15):
        print(f'    "{" ".join(colors[start : start + 15])} "')


if __name__ == "__main__":
    main()
