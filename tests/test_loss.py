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
"""The plain NTP-M loss against values worked out by hand."""

import math

import pytest
import torch

from densemllm.loss_densemllm import candidate_mask, check_dense_targets, ntp_m_loss, supervised_tokens


def log_p(z):
    return -math.log1p(math.exp(-z))


def log_not_p(z):
    return -math.log1p(math.exp(z))


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0, -2.0, 1.0]])
ALL = torch.tensor([[[0, 6]]])


def loss(targets, candidates=(0,), ranges=ALL, top_k=2, logits=LOGITS, **kwargs):
    return ntp_m_loss(logits, torch.tensor(targets), torch.tensor(candidates), ranges, top_k, **kwargs)


def test_one_positive_and_the_two_hardest_negatives():
    expected = -log_p(-1.0) - (log_not_p(3.0) + log_not_p(2.0)) / 2
    assert float(loss([[1, -100]])) == pytest.approx(expected, rel=1e-6)


def test_positives_and_negatives_have_means_of_their_own():
    expected = -(log_p(3.0) + log_p(-2.0) + log_p(0.5)) / 3 - (log_not_p(2.0) + log_not_p(1.0)) / 2
    assert float(loss([[3, 4, 2]])) == pytest.approx(expected, rel=1e-6)


def test_an_id_named_twice_counts_once():
    assert float(loss([[1, 1, 3]])) == pytest.approx(float(loss([[1, 3, -100]])), rel=1e-6)


def test_missing_annotations_are_no_negatives():
    ranges = torch.tensor([[[0, 2], [4, 6]]])  # 2 and 3, the highest, are not annotated
    expected = -log_p(-1.0) - (log_not_p(2.0) + log_not_p(1.0)) / 2
    assert float(loss([[1]], ranges=ranges)) == pytest.approx(expected, rel=1e-6)


def test_positives_that_are_not_annotated_do_not_count():
    ranges = torch.tensor([[[0, 3], [0, 0]]])
    expected = -log_p(-1.0) - (log_not_p(2.0) + log_not_p(0.5)) / 2
    assert float(loss([[1, 3]], ranges=ranges)) == pytest.approx(expected, rel=1e-6)


def test_fewer_negatives_than_k():
    ranges = torch.tensor([[[0, 3], [0, 0]]])
    expected = -log_p(-1.0) - (log_not_p(2.0) + log_not_p(0.5)) / 2
    assert float(loss([[1]], ranges=ranges, top_k=50)) == pytest.approx(expected, rel=1e-6)


def test_no_negative_at_all():
    assert float(loss([[0, 1]], ranges=torch.tensor([[[0, 2]]]))) == pytest.approx(-(log_p(2.0) + log_p(-1.0)) / 2)


def test_the_mean_runs_over_supervised_tokens_only():
    logits = torch.cat([LOGITS, LOGITS + 1, LOGITS - 3, LOGITS])
    ranges = torch.tensor([[[0, 6]], [[3, 6]]])
    # The second has no target, the third no annotation, the last a target outside its candidates.
    targets, candidates = [[1, -100], [-100, -100], [2, -100], [0, -100]], [0, 0, -1, 1]
    own = loss(targets, candidates, ranges, logits=logits)
    assert float(own) == pytest.approx(float(loss([[1]])), rel=1e-6)
    divided = loss(targets, candidates, ranges, logits=logits, num_items=5)
    assert float(divided) == pytest.approx(float(loss([[1]])) / 5, rel=1e-6)


def test_no_supervised_token_is_zero_with_a_gradient_of_zero():
    logits = LOGITS.clone().requires_grad_()
    own = loss([[-100]], logits=logits)
    own.backward()
    assert float(own.detach()) == 0 and bool((logits.grad == 0).all())


def test_gradient_flows_to_positives_and_chosen_negatives_only():
    logits = LOGITS.clone().requires_grad_()
    loss([[1, -100]], logits=logits).backward()
    p = logits.detach().sigmoid()[0]
    expected = torch.zeros(6)
    expected[1], expected[3], expected[0] = p[1] - 1, p[3] / 2, p[0] / 2
    torch.testing.assert_close(logits.grad[0], expected)


def test_half_precision_is_computed_in_float32():
    own = loss([[1]], logits=LOGITS.bfloat16())
    assert own.dtype == torch.float32
    assert float(own) == pytest.approx(float(loss([[1]])), rel=1e-6)  # the logits are exact in bfloat16


def test_supervised_tokens():
    targets = torch.tensor([[1, -100], [-100, -100], [2, 3]])
    assert supervised_tokens(targets, torch.tensor([0, 0, -1])).tolist() == [True, False, False]


def test_kinds_of_annotation_count_as_so_many_tokens():
    ranges = torch.tensor([[[0, 3]], [[3, 6]]])
    targets, kinds = [[1, 3], [0, -100]], [[0, 1], [0, -1]]
    logits = torch.cat([LOGITS, LOGITS + 1])
    own = loss(targets, kinds, ranges, logits=logits)
    # The first token once for each of its kinds, with the other kind's ids neither positive nor negative.
    apart = loss([*targets[:1] * 2, targets[1]], [0, 1, 0], ranges, logits=logits[[0, 0, 1]])
    assert float(own) == pytest.approx(float(apart), rel=1e-6)
    first = -log_p(-1.0) - (log_not_p(2.0) + log_not_p(0.5)) / 2
    second = -log_p(3.0) - (log_not_p(1.0) + log_not_p(-2.0)) / 2
    third = -log_p(3.0) - (log_not_p(0.0) + log_not_p(1.5)) / 2
    assert float(own) == pytest.approx((first + second + third) / 3, rel=1e-6)
    assert supervised_tokens(torch.tensor(targets), torch.tensor(kinds)).tolist() == [[True, True], [True, False]]


def test_candidate_mask_reads_half_open_ranges():
    mask = candidate_mask(torch.tensor([[[1, 3], [5, 6]], [[0, 0], [0, 6]]]), 6)
    assert mask.long().tolist() == [[0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    "name, changes",
    [
        ("top_k", {"top_k": 0}),
        ("dense_targets", {"dense_targets": torch.zeros(3, 1, dtype=torch.long)}),
        ("dense_targets", {"dense_targets": torch.zeros(2, dtype=torch.long)}),
        ("dense_targets", {"dense_targets": torch.tensor([[6], [0]])}),
        ("dense_targets", {"dense_targets": torch.tensor([[-3], [0]])}),
        ("dense_candidates", {"dense_candidates": torch.zeros(1, dtype=torch.long)}),
        ("dense_candidates", {"dense_candidates": torch.tensor([0, 1])}),
        ("dense_candidate_ranges", {"dense_candidate_ranges": torch.zeros(1, 2, dtype=torch.long)}),
        ("dense_candidate_ranges", {"dense_candidate_ranges": torch.tensor([[[0, 7]]])}),
    ],
)
def test_targets_that_do_not_fit_are_named(name, changes):
    arguments = {
        "dense_targets": torch.zeros(2, 1, dtype=torch.long),
        "dense_candidates": torch.zeros(2, dtype=torch.long),
        "dense_candidate_ranges": ALL,
        "top_k": 2,
    }
    check_dense_targets(2, 6, **arguments)
    with pytest.raises(ValueError, match=f"`{name}`"):
        check_dense_targets(2, 6, **{**arguments, **changes})
