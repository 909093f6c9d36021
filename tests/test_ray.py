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
"""The example for Ray Data, on a local Ray with two copies of the model. Skipped where ray is missing."""

import io

import numpy as np
import PIL.Image
import pytest

from densemllm.modeling_densemllm import DenseMLLMForConditionalGeneration
from repository import load_script
from tiny import ID2LABEL, make_image, make_model, make_processor


ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_two_copies_of_the_model_share_a_folder(tmp_path):
    script = load_script("examples/ray_data.py")
    ray.cloudpickle.register_pickle_by_value(script)  # as Ray sends what a script defines that is run by itself
    processor = make_processor()
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(6):
        make_image(24 + 8 * number, 32, number).save(tmp_path / f"images/{number}.png")
    (tmp_path / "images/notes.txt").write_text("no image")
    labels = list(ID2LABEL.values())
    words = [str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    script.main([*words, "--labels", ",".join(labels), "--copies", "2", "--batch_size", "2"])
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    rows = {row["path"].rsplit("/", 1)[1]: row for row in ray.data.read_parquet(str(tmp_path / "out")).take_all()}
    assert len(rows) == 7 and rows.pop("notes.txt")["segmentation"] is None
    for name, row in rows.items():
        expected = model.predict_dense(str(tmp_path / "images" / name), labels=labels).segmentation
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(row["segmentation"]))), expected.numpy())
