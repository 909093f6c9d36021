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
r"""What the fused NTP-M loss costs, against the ways it replaces and against its limit.

    python benchmarks/ntp_m_loss.py [--tokens 1024] [--vocab 151936] [--hidden 1024] [--top-k 100] [--quick]
    python benchmarks/ntp_m_loss.py --curve benchmarks/ntp_m_loss.png

Side by side, forward and backward to the states and to the output embedding: the equations transcribed (multi-hot
target, element-wise loss over all logits; also with both logarithms in one pass), careful plain autograd (gather the
positives, top-k of the rest, dense backward), fused; and one forward matrix product alone, which is the limit. Ends
with one line of JSON: ratios in float32. Memory is the peak beyond what was held before and beyond the two gradients,
which each way has to return.
"""

import argparse
import json
from functools import partial

import torch
import torch.nn.functional as F
from measure import extra_bytes, fast_dtype, paired_seconds, relative_error
from torch import nn

from densemllm.files import OVERWRITE_HELP, check_outputs_of_script
from densemllm.loss_densemllm import fused_ntp_m_loss


def transcribed(states, head, targets, top_k):
    """-mean over P of log p - mean over N of log(1 - p), term by term over all logits."""
    logits = head(states).float()
    labels = torch.zeros_like(logits).scatter_(1, targets, 1.0)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    chosen = logits.sigmoid().masked_fill(labels > 0, -1.0).topk(top_k, dim=1).indices
    relevant = torch.zeros_like(logits).scatter_(1, chosen, 1.0)
    positive = (labels * log_p).sum(dim=1) / labels.sum(dim=1)
    return -(positive + (relevant * log_not_p).sum(dim=1) / top_k).mean()


def transcribed_bce(states, head, targets, top_k):
    """The same with both logarithms in one pass of `binary_cross_entropy_with_logits`."""
    logits = head(states).float()
    labels = torch.zeros_like(logits).scatter_(1, targets, 1.0)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    positive = (losses * labels).sum(dim=1) / labels.sum(dim=1)
    chosen = logits.masked_fill(labels > 0, float("-inf")).topk(top_k, dim=1).indices
    relevant = torch.zeros_like(logits).scatter_(1, chosen, 1.0)
    return (positive + (losses * relevant).sum(dim=1) / top_k).mean()


def careful(states, head, targets, top_k):
    """The same from the chosen logits alone; autograd still makes a gradient for all of them."""
    logits = head(states)
    positive = logits.gather(1, targets).float()
    with torch.no_grad():
        chosen = logits.detach().scatter(1, targets, float("-inf")).topk(top_k, dim=1).indices
    negative = logits.gather(1, chosen).float()
    return (F.softplus(-positive).mean(dim=1) + F.softplus(negative).mean(dim=1)).mean()


def fused(states, head, targets, top_k):
    candidates = torch.zeros(len(targets), dtype=torch.long, device=targets.device)
    ranges = torch.tensor([[[0, head.out_features]]], device=targets.device)
    return fused_ntp_m_loss(states, head, targets, candidates, ranges, top_k)


def step(loss, states, head, targets, top_k):
    """Forward and backward; returns loss and gradients."""
    value = loss(states, head, targets, top_k)
    return value.detach(), *torch.autograd.grad(value, [states, head.weight])


def problem(tokens, vocab, hidden, dtype, device):
    torch.manual_seed(0)
    head = nn.Linear(hidden, vocab, bias=False, device=device, dtype=dtype)
    states = torch.randn(tokens, hidden, device=device, dtype=dtype, requires_grad=True)
    # Distinct ids, as cells have.
    targets = torch.randint(vocab - 8, (tokens, 1), device=device) + torch.tensor([0, 3, 7], device=device)
    return states, head, targets


@torch.no_grad()
def product(states, head):
    return head(states)


def measure(args, dtype, device) -> dict:
    states, head, targets = problem(args.tokens, args.vocab, args.hidden, dtype, device)
    gradients = (states.numel() + head.weight.numel()) * states.element_size()
    ways = {"transcribed": transcribed, "transcribed, BCE": transcribed_bce, "careful": careful, "fused": fused}
    calls = {
        **{name: partial(step, loss, states, head, targets, args.top_k) for name, loss in ways.items()},
        "forward product": partial(product, states, head),
    }
    if dtype == torch.float32:
        reference = calls["careful"]()
        for name in ("transcribed", "transcribed, BCE", "fused"):
            own = calls[name]()
            # The loss doesn't depend on which of two tied negatives is chosen; single rows of the gradients do.
            torch.testing.assert_close(own[0], reference[0], rtol=1e-4, atol=0)
            for value, expected in zip(own[1:], reference[1:], strict=True):
                error = relative_error(value, expected)
                assert error < 1e-2, f"{name}: a gradient is off by {error:.2%}"
        del reference, own, value, expected
    times = dict(zip(calls, paired_seconds(*calls.values(), repeats=args.repeats), strict=True))
    memory = {name: extra_bytes(call) for name, call in calls.items()}
    memory = {name: peak - gradients * (name in ways) for name, peak in memory.items()}
    print(f"\n{dtype}: {args.tokens} tokens, vocabulary {args.vocab}, width {args.hidden}, k = {args.top_k}")
    for name in calls:
        print(f"  {name:24}{times[name] * 1e3:10.1f} ms {memory[name] / 2**20:10.1f} MiB")
    head.requires_grad_(False)  # without the large gradient, which hides what the forward pass holds
    frozen = extra_bytes(lambda: torch.autograd.grad(fused(states, head, targets, args.top_k), states))
    print(f"  {'fused, frozen embedding':36} {(frozen - states.numel() * states.element_size()) / 2**20:11.1f} MiB")
    return {
        **{f"speedup_{name}": times[name] / times["fused"] for name in ("transcribed", "careful")},
        **{f"memory_ratio_{name}": memory["fused"] / memory[name] for name in ("transcribed", "careful")},
        "over_limit": times["fused"] / times["forward product"],
    }


def curve(args, device) -> None:
    """Time and memory of the fused loss over the number of tokens, with the limit drawn in."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [256, 512, 1024, 2048] if args.quick else [256, 512, 1024, 2048, 4096, 8192]
    rows = []
    print("\n  tokens   fused [s]   product [s]   fused [MiB]   logits alone [MiB]")
    for tokens in counts:
        states, head, targets = problem(tokens, args.vocab, args.hidden, torch.float32, device)
        both = partial(step, fused, states, head, targets, args.top_k)
        own, limit = paired_seconds(both, partial(product, states, head), repeats=args.repeats)
        memory = extra_bytes(both)
        memory -= (states.numel() + head.weight.numel()) * 4
        rows.append((own, limit, memory / 2**20, tokens * args.vocab * 4 / 2**20))
        print(f"{tokens:8}{own:12.2f}{limit:14.2f}{memory / 2**20:14.1f}{tokens * args.vocab * 4 / 2**20:21.1f}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.loglog(counts, [row[0] for row in rows], "o-", label="fused, forward and backward")
    left.loglog(counts, [row[1] for row in rows], "k--", label="one forward product (limit)")
    right.loglog(counts, [row[2] for row in rows], "o-", label="fused, beyond the gradients")
    right.loglog(counts, [row[3] for row in rows], "k--", label="logits alone")
    for axes, label in ((left, "seconds"), (right, "MiB")):
        axes.set_xlabel("vision tokens")
        axes.set_ylabel(label)
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"NTP-M loss, vocabulary {args.vocab}, width {args.hidden}, k = {args.top_k}, {device}")
    figure.savefig(args.curve, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, of which the median counts")
    parser.add_argument("--curve", help="draw 256 to 8,192 tokens into this PNG instead (needs matplotlib)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.vocab, args.hidden = 256, 50_000, 512
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.curve:
        check_outputs_of_script(parser, [args.curve], overwrite=args.overwrite, argument="--curve")
        return curve(args, device)
    results = measure(args, torch.float32, device)
    if fast_dtype(device) == torch.bfloat16:
        measure(args, torch.bfloat16, device)
    else:
        print("\ntorch.bfloat16: emulated by this CPU, not measured")
    print("\n" + json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
