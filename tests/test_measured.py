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
"""What is measured how: a task of an evaluation is one row, and its panel."""

import json

import numpy as np
import pytest
from datasets import Dataset

from densemllm.evaluate_densemllm import main
from densemllm.evaluation.arguments import EvaluationArguments
from densemllm.evaluation.measured import MEASURED, MeasuredTask, Settings
from densemllm.evaluation.metrics import GREATER_IS_BETTER, METRIC_NAMES, METRICS, ClassListMetrics
from densemllm.evaluation.predict import predict_batch
from densemllm.evaluation.report import PANELS
from tiny import ID2LABEL, make_model, make_processor, make_samples


@pytest.mark.parametrize("name", list(MEASURED))
def test_what_a_task_computes_has_a_name_and_a_direction(name):
    task = MEASURED[name]
    computed = task.make_metrics(Settings(ID2LABEL)).compute()
    scalars = {key for key, value in computed.items() if not isinstance(value, list)}
    assert task.name == name and task.score in scalars <= set(METRICS) and name in PANELS
    for key in scalars:
        assert METRIC_NAMES[key] == (METRICS[key].hub_task, METRICS[key].name)
        assert GREATER_IS_BETTER[key] is METRICS[key].greater_is_better
    options = vars(EvaluationArguments(model="m", data="d", task=name))
    assert {key: options[key] for key in task.options} == task.options  # a card leaves the defaults out


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"`tasks` must be of \[.*'depth'.*\], got \['colour'\]"):
        predict_batch(None, None, [], ["depth", "colour"])


def test_annotations_of_a_task_are_all_there_or_it_is_left_out():
    processor = make_processor()
    model = make_model(processor)
    sample = make_samples(3)[2]
    mask = np.zeros(np.shape(sample["segmentation"]), dtype=bool)
    tasks = ("segmentation", "referring")
    for more in ({}, {"mask": mask}, {"expression": "the wall"}):
        predicted = predict_batch(model, processor, [sample | more], tasks, ID2LABEL)
        assert [task for _, task, _, _ in predicted] == ["segmentation"]
    predicted = predict_batch(model, processor, [sample | {"mask": mask, "expression": "the wall"}], tasks, ID2LABEL)
    assert [task for _, task, _, _ in predicted] == list(tasks)


def test_a_new_task_is_one_row_and_one_panel(tmp_path, monkeypatch):
    row = MeasuredTask(
        name="counts",
        columns=(("segmentation",),),
        make_metrics=lambda settings: ClassListMetrics(),
        score="f1",
        reference=lambda sample, settings: [str(len(np.unique(sample["segmentation"])))],
        prediction=lambda answer, settings: answer.split(),
        question="How many classes are there?",
        needs_labels=True,
    )
    drawn = []

    def panels(case, image, id2label):
        drawn.append(case["reference"])
        return [image, image], [(None, "classes")]

    monkeypatch.setitem(MEASURED, row.name, row)
    monkeypatch.setitem(PANELS, row.name, panels)
    processor = make_processor()
    make_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    samples = [{"image": row["image"], "segmentation": row["segmentation"]} for row in make_samples(2)]
    Dataset.from_list(samples).save_to_disk(tmp_path / "data")
    (tmp_path / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    words = ["--model", tmp_path / "model", "--data", tmp_path / "data", "--output_dir", tmp_path / "out"]
    results = main([*map(str, words), "--task", row.name, "--cases", "1", "--device", "cpu"])
    assert results["images"] == {row.name: 2}
    assert set(results["metrics"][row.name]) == {"precision", "recall", "f1"}
    assert sorted(drawn) == [["3"], ["4"]] and (tmp_path / "out/cases.png").is_file()
    assert f"| {row.name} | class list F1 |" in (tmp_path / "out/results.md").read_text()
