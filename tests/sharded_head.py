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
"""Both losses with an output embedding whose weights are spread over two processes, which have different numbers of
tokens. Run by `test_fused_loss.py` under torchrun."""

import datetime
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

from densemllm.loss_densemllm import fused_cross_entropy, fused_ntp_m_loss, ntp_m_loss


class Gather(torch.autograd.Function):
    """All rows of a weight of which each process has a part."""

    @staticmethod
    def forward(ctx, own):
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


class Sharded(nn.Module):
    """An output embedding that is put together in each call."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.chunk(dist.get_world_size())[dist.get_rank()].clone())

    def forward(self, states):
        return F.linear(states, Gather.apply(self.weight))


def problem(n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    states = torch.randn(n_tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 40, (n_tokens, 2), generator=generator)
    return states, (targets, torch.zeros(n_tokens, dtype=torch.long), torch.tensor([[[0, 40]]]), 8)


def whole(weight, n_tokens):
    weight = weight.clone().requires_grad_()
    states, arguments = problem(n_tokens)
    logits = F.linear(states, weight)
    if not n_tokens:
        return [torch.zeros_like(states), torch.zeros_like(weight)]
    loss = ntp_m_loss(logits, *arguments) + F.cross_entropy(logits, arguments[0][:, 0])
    return torch.autograd.grad(loss, [states, weight])


def main(kind: str) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    rank = dist.get_rank()
    weight = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for counts in ((1100, 90), (10, 700), (0, 300)):
        if kind == "wrapped":
            head = Sharded(weight)
        else:
            head = nn.Linear(8, 40, bias=False, dtype=torch.float64)
            head.weight.data.copy_(weight)
            fully_shard(head)
        states, arguments = problem(counts[rank])
        loss = fused_ntp_m_loss(states, head, *arguments) + fused_cross_entropy(states, head, arguments[0][:, 0])
        loss.backward()
        expected = [whole(weight, count) for count in counts]
        torch.testing.assert_close(states.grad, expected[rank][0])
        total = expected[0][1] + expected[1][1]
        if kind == "wrapped":
            torch.testing.assert_close(head.weight.grad, total.chunk(2)[rank])
        else:  # the mean over the processes
            torch.testing.assert_close(2 * head.weight.grad.full_tensor(), total)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may end later than the interpreter, which aborts then: seen once on a busy machine.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
