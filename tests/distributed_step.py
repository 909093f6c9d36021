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
"""One step of training in one or several processes: what changes is written to a file. Run by `test_training.py`."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from densemllm.loss_densemllm import supervised_tokens
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, make_model, make_processor, make_samples


DEVICE = os.environ.get("DENSEMLLM_TEST_DEVICE") or "cpu"
ALL_NEGATIVES = 10**6  # so that there is no near-tie at the last one, which other batches could break the other way


def trainer_step(processor, samples):
    model = make_model(processor, ntp_m_top_k=ALL_NEGATIVES)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    processes = int(dist.is_torchelastic_launched()) + 1
    with tempfile.TemporaryDirectory() as folder:
        args = DenseTrainingArguments(
            output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", max_steps=1, optim="sgd",
            learning_rate=0.1, max_grad_norm=0, lr_scheduler_type="constant",
            per_device_train_batch_size=len(samples) // processes,
        )  # fmt: skip
        assert args.world_size == processes
        DenseTrainer(model, args, train_dataset=samples, data_collator=DenseCollator(processor, ID2LABEL)).train()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def sharded_gradients(processor, samples):
    """Every layer and the rest sharded over the processes, each of which has its part of the samples."""
    model = make_model(processor, ntp_m_top_k=ALL_NEGATIVES).to(DEVICE).train()
    processes = rank = 0
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo" if DEVICE == "cpu" else "nccl")
        processes, rank = dist.get_world_size(), dist.get_rank()
        if DEVICE != "cpu":
            torch.cuda.set_device(rank)
        mesh = init_device_mesh(DEVICE, (processes,))
        for layer in [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    collator = DenseCollator(processor, ID2LABEL)
    whole = collator(samples)
    counts = {
        "num_items_in_batch": (whole["labels"][:, 1:] != -100).sum(),
        "num_dense_items_in_batch": supervised_tokens(whole["dense_targets"], whole["dense_candidates"]).sum(),
    }
    own = collator(samples[rank::processes]) if processes else whole
    inputs = {**own, **counts}
    inputs = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    # Gradients are averaged over the processes, the losses are already divided by the global counts.
    (model(**inputs).loss * max(processes, 1)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: grad.full_tensor() if processes else grad for name, grad in gradients.items()}


if __name__ == "__main__":
    mode, target = sys.argv[1:]
    processor = make_processor()
    step = {"trainer": trainer_step, "fully_shard": sharded_gradients}[mode]
    result = step(processor, make_samples(4))
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(result, target)
    if dist.is_initialized():
        dist.barrier()  # a process that leaves early takes its connections away from the other
        dist.destroy_process_group()
        # gloo's threads may end later than the interpreter, which aborts then: seen once on a busy machine.
        sys.stdout.flush()
        os._exit(0)
