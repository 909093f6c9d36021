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
"""The fused losses against their plain forms."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from packaging.version import Version
from torch import nn
from torch.utils.checkpoint import checkpoint

import densemllm.loss_densemllm as loss_module
from densemllm.loss_densemllm import fused_cross_entropy, fused_ntp_m_loss, ntp_m_loss


class Wrapped(nn.Module):
    """An output embedding that is no `nn.Linear`: only its forward knows the logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states):
        return self.inner(hidden_states)


def random_problem(
    seed, n_tokens=23, vocab_size=211, width=6, max_targets=4, dtype=torch.float64, bias=False, n_kinds=None
):
    """States, head and targets with ragged, doubled and stray positives, over rows of ranges of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, shape):
        return torch.randint(low, high, shape, generator=generator)

    states = torch.randn(n_tokens, width, generator=generator, dtype=dtype).requires_grad_()
    head = nn.Linear(width, vocab_size, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    targets = integers(0, vocab_size, (n_tokens, max_targets))
    targets[torch.rand(targets.shape, generator=generator) < 0.4] = -100
    if max_targets > 1:
        targets[::5, 1] = targets[::5, 0]
    half = vocab_size // 2
    ranges = torch.tensor(
        [
            [[0, vocab_size], [0, 0], [0, 0]],
            [[half, vocab_size], [0, half // 2], [0, 0]],
            [[half, half + 1], [3, 5], [0, 1]],
            [[0, 0], [0, 0], [0, 0]],
        ]
    )
    candidates = integers(-1, len(ranges), (n_tokens,) if n_kinds is None else (n_tokens, n_kinds))
    return states, head, (targets, candidates, ranges)


def without_ties(states, head, targets, top_k):
    """Targets without the tokens whose last chosen and first unchosen negative differ by less than the rounding of
    their scores: both forms are right there, whichever they choose."""
    dense_targets, candidates, ranges = targets
    dense_targets = dense_targets.clone()
    if not len(dense_targets):
        return targets
    with torch.no_grad():
        scores = head(states)
        scale = 64 * torch.finfo(scores.dtype).eps * float(states.norm(dim=1).max() * head.weight.norm(dim=1).max())
        inside = loss_module.candidate_mask(ranges, scores.shape[1])
        for token, kinds in enumerate(candidates.view(len(candidates), -1).tolist()):
            for kind in kinds:
                negatives = inside[kind].clone()
                negatives[dense_targets[token][dense_targets[token] >= 0]] = False
                best = scores[token][negatives].double().sort(descending=True).values
                if kind >= 0 and len(best) > top_k and best[top_k - 1] - best[top_k] <= scale:
                    dense_targets[token] = -100
    return dense_targets, candidates, ranges


def gradients(loss, states, head):
    return torch.autograd.grad(loss, [states, *head.parameters()])


def assert_equal_losses(own, expected, states, head, loss_tolerance=1e-6, tolerance=1e-5):
    if own.dtype == torch.float32:  # sums of some hundred terms in another order; a small loss has lost digits before
        loss_tolerance = max(loss_tolerance, 1e-5)
    torch.testing.assert_close(own, expected, rtol=loss_tolerance, atol=1e-12)
    for a, b in zip(gradients(own, states, head), gradients(expected, states, head), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.norm()) + 1e-12)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_tokens=st.integers(0, 40),
    vocab_size=st.integers(12, 300),
    width=st.integers(1, 9),
    max_targets=st.integers(1, 6),
    top_k=st.integers(1, 40) | st.just(10**6),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    bias=st.booleans(),
    num_items=st.sampled_from([None, 7]),
    chunk=st.sampled_from([1, 700, 2**24]),
    group=st.sampled_from([1, 4, 32]),
    long_range=st.sampled_from([1, 8, 1024]),
    chunk_rows=st.sampled_from([1, 9, 1024]),
    wrapped=st.booleans(),
    n_kinds=st.sampled_from([None, 1, 3]),
)
def test_fused_equals_plain(
    seed,
    n_tokens,
    vocab_size,
    width,
    max_targets,
    top_k,
    dtype,
    bias,
    num_items,
    chunk,
    group,
    long_range,
    chunk_rows,
    wrapped,
    n_kinds,
):
    states, head, targets = random_problem(seed, n_tokens, vocab_size, width, max_targets, dtype, bias, n_kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
        patch.setattr(loss_module, "GROUP", group)
        patch.setattr(loss_module, "LONG_RANGE", long_range)
        patch.setattr(loss_module, "CHUNK_ROWS", chunk_rows)
        targets = without_ties(states, head, targets, top_k)
        own = fused_ntp_m_loss(states, Wrapped(head) if wrapped else head, *targets, top_k, num_items)
        expected = ntp_m_loss(head(states), *targets, top_k, num_items)
        assert own.dtype == dtype
        assert_equal_losses(own, expected, states, head)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 60))
@example(seed=1211, top_k=1)
def test_near_ties_may_be_broken_either_way(seed, top_k):
    states, head, targets = random_problem(seed, vocab_size=200, width=64, dtype=torch.float32)
    with torch.no_grad():  # ids come in pairs whose scores differ by about the rounding of a score
        head.weight.copy_(head.weight[:100].repeat_interleave(2, dim=0))
        head.weight[1::2] *= 1 + 1e-7
    own, expected = fused_ntp_m_loss(states, head, *targets, top_k), ntp_m_loss(head(states), *targets, top_k)
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=0)
    targets = without_ties(states, head, targets, top_k)
    own, expected = fused_ntp_m_loss(states, head, *targets, top_k), ntp_m_loss(head(states), *targets, top_k)
    assert_equal_losses(own, expected, states, head)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 5), top_k=st.integers(1, 60))
def test_ties_give_the_same_loss_and_the_same_pull_on_what_is_tied(seed, copies, top_k):
    states, head, (targets, candidates, ranges) = random_problem(seed, vocab_size=200)
    with torch.no_grad():  # ids come in families of one score
        head.weight.copy_(head.weight[: 200 // copies + 1].repeat_interleave(copies, dim=0)[:200])
    arguments = (targets, candidates, ranges, top_k)
    own, expected = fused_ntp_m_loss(states, head, *arguments), ntp_m_loss(head(states), *arguments)
    torch.testing.assert_close(own, expected)
    (states_a, weight_a), (states_b, weight_b) = gradients(own, states, head), gradients(expected, states, head)
    torch.testing.assert_close(states_a, states_b)
    family = torch.arange(200) // copies
    sums = [torch.zeros_like(weight_a).index_add_(0, family, weight) for weight in (weight_a, weight_b)]
    torch.testing.assert_close(*sums)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 70), pieces=st.integers(1, 5), empty=st.floats(0, 1))
def test_selection_by_groups_is_a_top_k(seed, k, pieces, empty):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(7, 160 * pieces, generator=generator)
    scores.masked_fill_(torch.rand(scores.shape, generator=generator) < empty, float("-inf"))
    top = loss_module._TopScores(7, k, torch.float32, scores.device)
    for first in range(0, scores.shape[1], 160):
        top.add(scores[:, first : first + 160].contiguous(), first)
    expected = torch.nn.functional.pad(scores, (0, k), value=float("-inf")).topk(k).values
    torch.testing.assert_close(top.values.sort(descending=True).values, expected, rtol=0, atol=0)
    there = top.values > float("-inf")
    torch.testing.assert_close(scores.gather(1, top.columns)[there], top.values[there], rtol=0, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias):
    states, head, targets = random_problem(1, n_tokens=6, vocab_size=30, width=3, bias=bias)

    def ntp_m(states, *parameters):
        own = nn.Linear(3, 30, bias=bias, dtype=torch.float64)
        for name, value in zip([name for name, _ in own.named_parameters()], parameters, strict=True):
            delattr(own, name)
            setattr(own, name, nn.Parameter(value.detach()))
            own._parameters[name] = value
        labels = torch.tensor([3, -100, 7, 7, 29, 0])
        return fused_ntp_m_loss(states, own, *targets, 5), fused_cross_entropy(states, own, labels)

    assert torch.autograd.gradcheck(ntp_m, (states, *head.parameters()))


def test_frozen_head_gets_no_gradient_and_states_get_the_same():
    states, head, targets = random_problem(2)
    expected = torch.autograd.grad(fused_ntp_m_loss(states, head, *targets, 8), states)[0]
    head.requires_grad_(False)
    loss = fused_ntp_m_loss(states, head, *targets, 8)
    loss.backward()
    torch.testing.assert_close(states.grad, expected, rtol=0, atol=0)
    assert head.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(fused_ntp_m_loss(states, head, *targets, 8), loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_follows_the_plain_form(autocast):
    states, head, targets = random_problem(
        3, n_tokens=40, width=32, dtype=torch.float32 if autocast else torch.bfloat16
    )
    with torch.no_grad():
        head.weight.mul_(0.2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        own, expected = fused_ntp_m_loss(states, head, *targets, 8), ntp_m_loss(head(states), *targets, 8)
    assert own.dtype == torch.float32
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=0)
    for a, b in zip(gradients(own, states, head), gradients(expected, states, head), strict=True):
        assert a.dtype == b.dtype
        # Rounded scores tie, and another of the tied ids may be chosen.
        assert float((a - b).float().norm()) < 0.1 * float(b.float().norm())


class Kept(list):
    """Tensors that autograd keeps for the backward pass, with what it does while this is entered."""

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: self.append(x) or x, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def both_losses(states, head, targets, labels, top_k, fused):
    if fused:
        return fused_ntp_m_loss(states, head, *targets, top_k), fused_cross_entropy(states, head, labels)
    return ntp_m_loss(head(states), *targets, top_k), F.cross_entropy(head(states).float(), labels)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_rounds_each_gradient_once(autocast, wrapped, bias, monkeypatch):
    """Against float32 the gradients of both losses are as good as those of plain logits: summed in float32. Those of a
    layer of which only the forward is known are summed by autograd, in their own type."""
    n_tokens, vocab_size, width = 2048, 600, 32
    # As many pieces as there are at the released size.
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", n_tokens * vocab_size // 40)
    states, head, (targets, _, _) = random_problem(
        8, n_tokens, vocab_size, width, dtype=torch.float32 if autocast else torch.bfloat16, bias=bias
    )
    with torch.no_grad():
        head.weight.mul_(0.3)
        for tensor in (states, *head.parameters()):
            tensor.copy_(tensor.bfloat16())
    targets[:, 0] = torch.arange(n_tokens) % 7  # a few ids have most of the gradient
    dense = (targets, torch.zeros(n_tokens, dtype=torch.long), torch.tensor([[[0, vocab_size]]]))
    arguments = (dense, targets[:, 0], vocab_size)  # all negatives: none is nearly tied with one that isn't chosen
    exact_states = states.detach().float().requires_grad_()
    exact_head = nn.Linear(width, vocab_size, bias=bias)
    exact_head.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    exact = both_losses(exact_states, exact_head, *arguments, fused=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = both_losses(states, head, *arguments, fused=False)
        fused = both_losses(states, Wrapped(head) if wrapped else head, *arguments, fused=True)
    for exact_loss, plain_loss, own_loss in zip(exact, plain, fused, strict=True):
        torch.testing.assert_close(own_loss, exact_loss, rtol=1e-3, atol=0)
        expected = gradients(exact_loss, exact_states, exact_head)
        of_plain, own = gradients(plain_loss, states, head), gradients(own_loss, states, head)
        for a, b, c in zip(own, of_plain, expected, strict=True):
            assert a.dtype == b.dtype
            error, error_of_plain = (float((x.float() - c).norm() / c.norm()) for x in (a, b))
            assert error < (2.5 if wrapped else 1.5) * error_of_plain < 6e-3, (error, error_of_plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_embedding_is_kept_for_backward(dtype):
    states, head, targets = random_problem(9, n_tokens=12, vocab_size=4000, width=16, dtype=dtype)
    with Kept() as kept, torch.autocast("cpu", torch.bfloat16):
        sum(both_losses(states, head, targets, targets[0][:, 0], 8, fused=True))
    large = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() >= head.weight.numel()}
    assert large == {head.weight.untyped_storage().data_ptr()}


def test_inside_checkpoint_and_compile():
    states, head, targets = random_problem(4, dtype=torch.float32)

    def whole(states):
        return fused_ntp_m_loss(states * 2, head, *targets, 8) + fused_cross_entropy(states, head, targets[0][:, 0])

    expected = gradients(whole(states), states, head)
    for own in (checkpoint(whole, states, use_reentrant=False), torch.compile(whole, backend="aot_eager")(states)):
        for a, b in zip(gradients(own, states, head), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("merged", [False, True])
def test_lora_on_the_head(merged):
    peft = pytest.importorskip("peft")
    states, head, targets = random_problem(5, dtype=torch.float32)
    model = nn.Sequential()
    model.lm_head = head
    config = peft.LoraConfig(target_modules=["lm_head"], r=3, lora_alpha=7, init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    adapted = model.base_model.model.lm_head
    if merged:
        adapted.merge()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    targets = without_ties(states, adapted, targets, 8)
    labels = targets[0][:, 0]
    own = fused_ntp_m_loss(states, adapted, *targets, 8) + fused_cross_entropy(states, adapted, labels)
    expected = ntp_m_loss(adapted(states), *targets, 8) + F.cross_entropy(adapted(states), labels)
    torch.testing.assert_close(own, expected)
    wanted = [states] if merged else [states, *parameters]
    assert len(parameters) == 2
    for a, b in zip(torch.autograd.grad(own, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 30),
    chunk=st.sampled_from([1, 500, 2**24]),
    wrapped=st.booleans(),
    num_items=st.sampled_from([None, 11]),
)
def test_fused_cross_entropy_equals_plain(seed, n, chunk, wrapped, num_items):
    states, head, (targets, _, _) = random_problem(seed, n_tokens=n, bias=True)
    labels = targets[:, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
        own = fused_cross_entropy(states, Wrapped(head) if wrapped else head, labels, num_items)
        divisor = num_items or max(int((labels != -100).sum()), 1)
        expected = F.cross_entropy(head(states), labels, reduction="sum") / divisor
        assert_equal_losses(own, expected, states, head)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wrapped", "fully_shard"])
def test_processes_with_different_counts_call_a_sharded_head_equally_often(kind):
    """Or they would wait for each other for ever."""
    if kind == "fully_shard" and Version(torch.__version__) < Version("2.13"):
        # Said as an error and not by waiting; a head in its model's root group is gathered once, and works.
        pytest.skip("an older torch doesn't gather a module anew that is called several times and computed again")
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(folder / "sharded_head.py"), kind],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_labels_outside_the_vocabulary_are_named():
    states, head, _ = random_problem(6)
    with pytest.raises(ValueError, match="`labels` has ids 211"):
        fused_cross_entropy(states, head, torch.full((23,), 211))


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 4000)
    largest = 0

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return output

    states, head, targets = random_problem(7, n_tokens=300, vocab_size=2000, dtype=torch.float32)
    with Spy():
        fused_ntp_m_loss(states, head, *targets, 8).backward()
        fused_cross_entropy(states, head, targets[0][:, 0]).backward()
    assert largest <= 2000 * 6 < 300 * 2000  # the gradient of the output embedding itself
