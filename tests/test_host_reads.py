"""How often the host waits for the device: on CUDA, or else on a stand-in device that computes on the CPU."""

import pytest
import torch

from densemllm import loss_densemllm as loss_module
from densemllm.decoding_densemllm import upsampled_strips
from densemllm.loss_densemllm import fused_cross_entropy, fused_ntp_m_loss
from densemllm.training.collator import DenseCollator
from repository import load_script
from tiny import ID2LABEL, assert_maps_agree, make_image, make_model, make_processor, make_samples


host_reads = load_script("benchmarks/host_reads.py")
count_host_reads, to_device = host_reads.count_host_reads, host_reads.to_device
DEVICE = host_reads.counting_device()
MANY_LABELS = [*ID2LABEL.values(), *(f"thing {letter}" for letter in "abcdefghij")]
ON_CPU = pytest.mark.skipif(DEVICE.type == "cuda", reason="of the stand-in")


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def collate(processor, count: int, **options) -> dict[str, torch.Tensor]:
    return DenseCollator(processor, ID2LABEL, candidates="labels", **options)(make_samples(max(count, 2))[-count:])


def on_device(processor, **options):
    """The same model on the CPU and on the device, and the latter's processor set."""
    there = to_device(make_model(processor, **options), DEVICE)
    there.set_processor(processor)
    return make_model(processor, **options), there


def assert_near(own: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(own.detach().cpu(), expected.detach(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[1].item(), lambda x: int(x[1]), lambda x: bool(x[1] > 0), lambda x: torch.equal(x, x + 1),
        lambda x: x.nonzero(), lambda x: x[x > 1], lambda x: x.masked_select(x > 1), lambda x: x.unique(),
        lambda x: x.repeat_interleave(x), lambda x: x.bincount(), lambda x: x.cpu(), lambda x: x.tolist(),
        lambda x: x.to("cpu", torch.float64), lambda x: torch.empty(3, dtype=torch.long).copy_(x),
    ],
)  # fmt: skip
def test_what_waits_is_counted(call):
    x = to_device(torch.arange(3), DEVICE)
    assert len(count_host_reads(lambda: call(x))) == 1
    near = torch.arange(3)
    assert len(count_host_reads(lambda: call(near))) == 0  # who is on the CPU waits for nobody


def test_what_does_not_wait_is_not_counted():
    x = to_device(torch.arange(3), DEVICE)

    def call():
        y = torch.where(x > 1, x, -1) + torch.tensor([1, 2, 3], device=x.device)
        y[x > 1] = 0
        return y.masked_fill(x > 1, 0)[x.argsort()].to(torch.float32).sum(), torch.ones(2).to(x.device)

    assert len(count_host_reads(call)) == 0


@ON_CPU
def test_the_stand_in_refuses_tensors_on_two_devices():
    x = to_device(torch.arange(3), DEVICE)
    with pytest.raises(RuntimeError, match="two devices"):
        count_host_reads(lambda: x + torch.arange(3))


@pytest.mark.parametrize("vision_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("count", [1, 4])  # without and with padding
def test_a_training_step_waits_at_most_twice(processor, count, attention, vision_attention):
    model, there = on_device(processor, vision_attention=vision_attention)
    batch = collate(processor, count)
    assert bool((batch["attention_mask"] == 0).any()) == (count > 1)
    moved = to_device(batch, DEVICE)
    outputs, losses = [], model.train()(**batch)
    losses.loss.backward()
    there.train().set_attn_implementation(attention)
    assert len(count_host_reads(lambda: outputs.append(there(**moved)))) <= 2
    assert len(count_host_reads(lambda: outputs[0].loss.backward())) == 0
    for name in ("loss", "text_loss", "ntp_m_loss"):
        assert_near(outputs[0][name], losses[name])
    for (name, own), expected in zip(there.named_parameters(), model.parameters(), strict=True):
        assert (own.grad is None) == (expected.grad is None), name
        if own.grad is not None:
            assert_near(own.grad, expected.grad)


def test_sizes_on_the_cpu_are_read_there(processor):
    _, there = on_device(processor)
    batch = collate(processor, 2)
    grid, pixel_values = batch["image_grid_thw"], to_device(batch["pixel_values"], DEVICE)
    assert len(count_host_reads(lambda: there.get_image_features(pixel_values, grid))) == 0
    assert len(count_host_reads(lambda: there.get_image_features(pixel_values, to_device(grid, DEVICE)))) == 1


@pytest.mark.parametrize(
    "change", ["labels", "dense_targets", "dense_candidates", "dense_candidate_ranges", "input_ids"]
)
def test_values_that_cannot_be_are_refused_all_the_same(processor, change):
    _, there = on_device(processor)
    batch = collate(processor, 2)
    batch[change] = batch[change].clone()
    if change == "input_ids":
        batch[change][batch[change] == processor.image_token_id] = 7
    else:
        batch[change][batch[change] >= 0] = 10**6
    moved = to_device(batch, DEVICE)
    with pytest.raises(ValueError, match=f"`{change}`"):
        count_host_reads(lambda: there(**moved))


def test_the_fused_losses_wait_once_however_many_pieces(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 2**11)
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    n, width, vocab_size = 64, 8, 512
    head = torch.nn.Linear(width, vocab_size, bias=False)
    states = torch.randn(n, width, generator=generator)
    targets = torch.randint(0, vocab_size, (n, 3), generator=generator)
    candidates = torch.stack([torch.arange(n) % 3 - 1, torch.zeros(n, dtype=torch.long)], dim=1)
    ranges = torch.tensor([[[0, 300], [400, 512]], [[100, 512], [0, 0]]])
    arguments = (targets, candidates, ranges)
    expected, own = [], []
    for device, found in (("cpu", expected), (DEVICE, own)):
        place = (lambda value: value) if device == "cpu" else lambda value: to_device(value, DEVICE)
        layer, there, moved = place(head), place(states.clone()), [place(value) for value in arguments]

        def losses(layer=layer, there=there, moved=moved, found=found):
            there.requires_grad_()
            found += [fused_ntp_m_loss(there, layer, *moved, 20), fused_cross_entropy(there, layer, moved[0][:, 0])]
            found.append(torch.autograd.grad(found[0] + found[1], [there, layer.weight]))

        assert len(count_host_reads(losses)) == (0 if device == "cpu" else 2)  # one wait for each of the two
    for place in (0, 1):
        assert_near(own[place], expected[place])
    for ours, theirs in zip(own[2], expected[2], strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("labels", [list(ID2LABEL.values()), MANY_LABELS, [*MANY_LABELS, "<OTHERS>"]], ids=len)
@pytest.mark.parametrize(
    ("options", "vision_attention"),
    [({}, "causal"), ({"background": True}, "causal"), ({"threshold": 0.08}, "bidirectional")],
    ids=str,
)
def test_two_tasks_on_four_images_wait_at_most_four_times(processor, labels, options, vision_attention):
    model, there = on_device(processor, vision_attention=vision_attention)
    images = [make_image(32 + 8 * index, 40, index) for index in range(4)]
    arguments = {"task": ("segmentation", "depth"), "labels": labels, **options}
    found = []
    assert len(count_host_reads(lambda: found.extend(there.predict_dense(images, **arguments)))) <= 4
    for own, expected in zip(found, model.predict_dense(images, processor=processor, **arguments), strict=True):
        assert_maps_agree(own.segmentation, expected.segmentation, 0.99)
        assert_maps_agree(own.predicted_depth, expected.predicted_depth, 0.99)
        assert own.scores.keys() == expected.scores.keys()
        rows = [[{**row, "score": round(row["score"], 4)} for row in maps.segments_info] for maps in (own, expected)]
        assert rows[0] == rows[1]


def test_strips_are_larger_on_a_device():
    maps, found = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0)), []
    strips = list(upsampled_strips(maps, (900, 700)))
    there = to_device(maps, DEVICE)
    count_host_reads(lambda: found.extend(upsampled_strips(there, (900, 700))))
    assert len(found) < len(strips)
    assert_near(
        torch.cat([strip.cpu() for _, strip in found], dim=1), torch.cat([strip for _, strip in strips], dim=1)
    )


def test_maps_that_came_together_have_memory_of_their_own(processor):
    _, there = on_device(processor)
    images, found = [make_image(32, 40, index) for index in range(3)], []
    arguments = {"labels": list(ID2LABEL.values()), "return_logits": True}
    count_host_reads(lambda: found.extend(there.predict_dense(images, **arguments)))
    for maps in found:
        for values in (maps.segmentation, maps.scores, maps.logits):
            assert type(values) is torch.Tensor and values.device.type == "cpu"
            assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
