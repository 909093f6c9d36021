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
r"""What a step of reinforcement learning costs: TRL's trainer, which encodes an image and reads a prompt for each
answer, `DenseGRPOTrainer`, which encodes an image once for all of them, and the same with `share_prompts`.

    python benchmarks/grpo_step.py [--quick]

Answers are made, rewarded and learned from, without the dense loss and the optimiser; the same questions, in turn, in
bfloat16 where that is fast. Ends with one line of JSON: seconds of each, and those of TRL's trainer over the others'.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import fast_dtype, paired_seconds
from trl import GRPOConfig, GRPOTrainer

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.formats.folders import load_samples
from densemllm.formats.labels import load_id2label
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.grpo import DenseGRPOTrainer, make_rewards
from densemllm.training.prompts import make_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/densemllm-rooms")
    parser.add_argument("--data", default="examples/rooms/sample", help="folder that render.py wrote")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--answers", type=int, default=8, help="to each question")
    parser.add_argument("--quick", action="store_true", help="two answers to one question, once: shows that it runs")
    options = parser.parse_args()
    n_questions, n_answers, repeats = (1, 2, 1) if options.quick else (options.questions, options.answers, 3)
    processor = DenseMLLMProcessor.from_pretrained(options.model)
    id2label = load_id2label(str(Path(options.data) / "id2label.json"))
    columns = ("image", "segmentation", "focal_length")
    data = DenseDataset(DenseSource(load_samples(options.data, "train"), None, id2label, columns=columns))
    questions = make_prompts(data, processor)
    rows = [questions[place] for place in range(n_questions) for _ in range(n_answers)]
    steps, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, more in (
            ("trl", GRPOTrainer, {}),
            ("images_once", DenseGRPOTrainer, {}),
            ("shared_prompts", DenseGRPOTrainer, {"share_prompts": True}),
        ):
            args = GRPOConfig(
                folder, per_device_train_batch_size=len(rows), num_generations=n_answers, max_completion_length=64,
                bf16=fast_dtype(device) == torch.bfloat16, use_cpu=device == "cpu", gradient_checkpointing=False,
                report_to="none",
            )  # fmt: skip
            model = DenseMLLMForConditionalGeneration.from_pretrained(
                options.model, dtype=torch.float32, attn_implementation="eager"
            )
            rewards = make_rewards(["class_list_iou"], args.max_completion_length, 1)
            trainer = kind(
                model=model,
                reward_funcs=rewards,
                args=args,
                train_dataset=questions,
                processing_class=processor,
                **more,
            )
            trainer.current_gradient_accumulation_steps = 1  # which `train` says
            trainer.model.train()
            steps[name] = partial(trainer.training_step, trainer.model, rows, None)
        results = dict(zip(steps, paired_seconds(*steps.values(), repeats=repeats), strict=True))
    print(f"{torch.get_num_threads()} threads, {n_questions} questions, {n_answers} answers to each")
    for name, value in results.items():
        print(f"  {name:15} {value:8.2f} s")
    ratios = {f"trl_over_{name}": results["trl"] / value for name, value in results.items() if name != "trl"}
    print(json.dumps({f"{name}_s": round(value, 3) for name, value in results.items()} | ratios))


if __name__ == "__main__":
    main()
