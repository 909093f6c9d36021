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
r"""Evaluate a DenseMLLM on annotated data.

    python evaluate_densemllm.py --model MODEL --data DATA --task segmentation depth
    python evaluate_densemllm.py config.yaml --max_depth 10 --crop nyu
    torchrun --nproc_per_node 8 evaluate_densemllm.py --model MODEL --data DATA --task referring

Tasks, and the columns of DATA that they need (see `training/samples.py`):
    segmentation  `segmentation`        mIoU, boundary IoU, pixel accuracy; all of `id2label` are candidates
    depth         `depth`               delta1 to delta3, AbsRel, RMSE, SILog
    referring     `mask`, `expression`  cIoU, gIoU, boundary IoU; or `instances`, `expressions` and
                                        `expression_instances`, of which one is drawn, the same in every run
    class_list    `segmentation`        precision, recall and F1 of the classes that the model names when asked
    named_labels  `segmentation`        as segmentation; of `id2label`, those are candidates that the model names when
                                        asked what is there, of answered_labels when it gets the list
    normals       `normals`             mean and median angle, shares under 11.25, 22.5 and 30 degrees; where the model
                                        has no tokens of normals they are those of its depth, with `focal_length`
    panoptic      `segmentation`,       PQ, SQ and RQ of all classes, of things and of stuff; things are those that
                  `instances`           `--thing_labels` names, or the model's config
    instances     as panoptic           mask AP, AP50 and AP75 of the things, by pycocotools
    detection     `objects`             box AP, AP50 and AP75, by pycocotools, of what the model names when asked for
                                        all objects, at the sizes of `--detection_scales`
    grounding     as referring          share of boxes with IoU 0.5 or more with that of the mask
    pose          `person`              PCKh@0.5 of the person in a box, which is cut out
    counting      `question`, `answer`  share of right numbers, and RMSE
    text          `messages`, or        what the language model knows: perplexity of `--text_file`, or of a short text;
                  `question`, `answer`  share of questions whose right answer is likelier than wrong ones of the data

In the output folder:
    results.json   metrics, counts, options, versions, seconds
    results.md     the same as tables, with a row a class
    confusion.png  the confusion matrix, each row of it in percent
    cases.png      the best, the median and the worst images of each task
    state/         what is done: a run that was stopped goes on from there, in any number of processes

In the folder of `--save_coco`, what is found of panoptic maps and instances; an image's id is its place in the data:
    instances.json  the things' masks as run lengths, as pycocotools reads them
    panoptic/       PNGs as panopticapi reads them, with
    panoptic.json   which is written last

`--task text --baseline BEFORE/results.json`, where BEFORE is of the model before a training, on the same text and the
same data, says in the results and in the card whether text is kept, and by how much not.

A configuration file (YAML or JSON) has the options by name; what stands after it on the command line wins. A folder
that has the state of other options, data or weights, or files of these names that no such state belongs to, is refused
unless `--overwrite` is given; then, too, files of the data stay.
"""

import sys
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from densemllm.arguments import HelpFormatter, parse_with_file
from densemllm.evaluation import run as evaluation
from densemllm.evaluation.arguments import EvaluationArguments
from densemllm.files import USER_ERRORS, one_line


def parse_arguments(arguments: list[str] | None = None) -> EvaluationArguments:
    """Arguments of the command line, with a configuration file's in front."""
    parser = HfArgumentParser(EvaluationArguments, description=__doc__, formatter_class=HelpFormatter)
    return parse_with_file(parser, arguments)[0]


def main(arguments: list[str] | None = None) -> dict:
    """The script. Returns what `results.json` has, in every process."""
    return evaluation.main(parse_arguments(arguments))


def run(arguments: list[str] | None = None) -> int:
    """[`main`] for a shell: 0, or 2 after a line on stderr where something can't be used."""
    try:
        main(arguments)
    except USER_ERRORS as error:
        print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = run()
    if code == 0:  # or else the other processes may wait for this one, and it for them
        PartialState().destroy_process_group()
    sys.exit(code)
