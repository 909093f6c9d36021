"""`train_grpo.py`: questions about samples, rewards and the dense loss beside them, at tiny size."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm.loss_densemllm import IGNORED
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.equal_images import EqualImagesOnce, first_equals
from densemllm.training.prompts import make_prompts
from densemllm.training.shared_prompts import pack_answers
from densemllm.training.trainer import DenseTrainer
from repository import require
from tiny import ID2LABEL, LLAMA, make_image, make_model, make_processor, make_samples


pytest.importorskip("trl")

from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from densemllm.train_grpo import main, parse_arguments, run  # noqa: E402
from densemllm.training import grpo  # noqa: E402
from densemllm.training.grpo import DenseGRPOTrainer, make_rewards  # noqa: E402


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny model, data, and the words for both."""
    folder = tmp_path_factory.mktemp("grpo")
    processor = make_processor()
    make_model(processor, text=LLAMA).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = make_samples(4)
    Dataset.from_list([{**row, "depth": None} for row in rows]).remove_columns("depth").save_to_disk(folder / "data")
    (folder / "labels.json").write_text(json.dumps(ID2LABEL))
    config = {
        "model_name_or_path": str(folder / "model"), "dataset": [str(folder / "data")],
        "id2label": [str(folder / "labels.json")], "reward_funcs": ["class_list_iou", "repetition", "soft_overlong"],
        "soft_punish_cache": 4, "max_completion_length": 6, "num_generations": 2, "per_device_train_batch_size": 4,
        "max_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "report_to": "none", "logging_steps": 1,
        "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    (folder / "grpo.yaml").write_text(yaml.safe_dump(config))
    return folder


def logs_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row for row in history if "reward" in row]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return DenseMLLMForConditionalGeneration.from_pretrained(folder).state_dict()


# ---- the script ----


def test_a_step_from_a_file(source, tmp_path):
    out = tmp_path / "out"
    words = ["--output_dir", str(out), "--dense_loss_weight", "0.5", "--save_strategy", "no"]
    metrics = main([str(source / "grpo.yaml"), *words])
    assert math.isfinite(metrics["train_loss"])
    rows = logs_of(out)
    assert len(rows) == 2
    for row in rows:
        for name in ("loss", "grad_norm", "reward", "ntp_m_loss", "rewards/class_list_iou/mean"):
            assert math.isfinite(row[name]), name
        assert 0 <= row["rewards/repetition/mean"] <= 1
        assert -1 <= row["rewards/soft_overlong_punishment_reward/mean"] <= 0
    before, after = weights_of(source / "model"), weights_of(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    processor = DenseMLLMProcessor.from_pretrained(out)
    model = DenseMLLMForConditionalGeneration.from_pretrained(out)
    assert model.predict_dense(make_image(16, 24), labels=["wall"], processor=processor).segmentation.shape == (16, 24)
    assert "ntp_m_loss" not in (main([str(source / "grpo.yaml"), *words[:2], *words[4:]]), logs_of(out)[0])[1]


def test_a_run_goes_on_where_it_stopped(source, tmp_path):
    """Four steps at once, and two and two: the same answers, rewards and weights."""
    words = [str(source / "grpo.yaml"), "--max_steps", "4", "--save_steps", "2", "--lr_scheduler_type", "constant"]
    words += ["--dense_loss_weight", "0.5", "--num_iterations", "2"]
    main([*words, "--output_dir", str(tmp_path / "whole")])
    main([*words, "--output_dir", str(tmp_path / "parts"), "--max_steps", "2"])
    parts = [*words, "--output_dir", str(tmp_path / "parts"), "--resume_from_checkpoint", "true"]
    main(parts)
    whole, own = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5, msg=name)
    rows = [[row["reward"] for row in logs_of(tmp_path / name)] for name in ("whole", "parts")]
    assert rows[0] == pytest.approx(rows[1])
    with pytest.raises(ValueError, match="has no trainer_state.json"):
        main([*words, "--output_dir", str(tmp_path / "parts"), "--resume_from_checkpoint", str(tmp_path)])


@pytest.mark.parametrize("name", ["grpo.yaml", "grpo_dapo.yaml"])
def test_example_configurations_run_without_a_gpu(source, tmp_path, name):
    if torch.accelerator.is_available():
        pytest.skip("has an accelerator")
    own = yaml.safe_load((source / "grpo.yaml").read_text())
    words = ["--model_name_or_path", own["model_name_or_path"], "--dataset", *own["dataset"]]
    words += ["--id2label", *own["id2label"], "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    words += ["--max_completion_length", "5", "--soft_punish_cache", "2", "--gradient_accumulation_steps", "2"]
    words += ["--num_generations", "4", "--per_device_train_batch_size", "4", "--use_cpu", "--save_strategy", "no"]
    metrics = main([str(require("examples/configs") / name), *words, "--disable_tqdm", "true"])
    assert math.isfinite(metrics["train_loss"])


def test_the_file_of_dapo_says_what_dapo_is():
    script, args, _ = parse_arguments(["--config", str(require("examples/configs") / "grpo_dapo.yaml"), "--use_cpu"])
    assert (args.loss_type, args.epsilon, args.epsilon_high, args.beta) == ("dapo", 0.2, 0.24, 0)
    assert args.num_iterations == 4 and args.mask_truncated_completions and script.filter_groups
    assert "soft_overlong" in script.reward_funcs


def test_adapters(source, tmp_path):
    words = [str(source / "grpo.yaml"), "--output_dir", str(tmp_path), "--use_peft", "--lora_r", "2"]
    words += ["--max_steps", "1"]
    words += ["--dense_loss_weight", "0.5", "--save_steps", "1", "--lr_scheduler_type", "constant"]
    main(words)
    assert (tmp_path / "adapters" / "adapter_config.json").is_file()
    before, after = weights_of(source / "model"), weights_of(tmp_path)
    changed = {name for name in before if not torch.allclose(before[name].float(), after[name].float(), atol=1e-7)}
    assert changed and all("language_model" in name or "projector" in name for name in changed)
    resumed = ["--max_steps", "2", "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")]
    main([*words, *resumed])
    assert any(not torch.equal(after[name], value) for name, value in weights_of(tmp_path).items())
    with pytest.raises(ValueError, match="--use_peft"):
        main([*words[:3], *resumed])


def test_answers_are_rewarded_on_other_data_while_training(source, tmp_path):
    words = [
        str(source / "grpo.yaml"),
        "--output_dir",
        str(tmp_path),
        "--max_steps",
        "1",
        "--dense_loss_weight",
        "0.5",
    ]
    words += ["--eval_split", "train", "--eval_strategy", "steps", "--eval_steps", "1", "--do_eval"]
    main([*words, "--per_device_eval_batch_size", "4"])
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    (row,) = [row for row in history if "eval_reward" in row]
    assert math.isfinite(row["eval_reward"]) and 0 <= row["eval_rewards/class_list_iou/mean"] <= 1


def said(capsys, *words) -> str:
    assert run([str(word) for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_grpo.py: ")]
    return line


def test_what_cannot_be_used_is_said(source, tmp_path, capsys):
    words = [source / "grpo.yaml", "--output_dir", tmp_path / "out"]
    assert "`reward_funcs` must be some of" in said(capsys, *words, "--reward_funcs", "iou")
    assert "each name once" in said(capsys, *words, "--reward_funcs", "soft_overlong", "soft_overlong")
    assert "`soft_punish_cache`" in said(capsys, *words, "--soft_punish_cache", "7")
    assert "`questions` must be some of" in said(capsys, *words, "--questions", "sums")
    assert "question of the kinds ['pose']" in said(capsys, *words, "--questions", "pose")
    assert "`crop_size` can't be given" in said(capsys, *words, "--crop_size", "8", "8")
    assert "`use_dora` can't be given" in said(capsys, *words, "--use_dora")
    assert "`dense_loss_weight` must be at least 0" in said(capsys, *words, "--dense_loss_weight", "-1")
    assert "`filter_groups` needs `beta` = 0" in said(capsys, *words, "--filter_groups", "--beta", "0.1")
    assert "must not be the folder of `model_name_or_path`" in said(
        capsys, *words[:2], source / "model", "--reward_funcs", "format"
    )
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(source, tmp_path):
    """Every reward alike, so that it is the dense loss's, of which each process has a part."""
    words = [str(source / "grpo.yaml"), "--reward_funcs", "format", "--filter_groups", "--dense_loss_weight", "0.5"]
    words += ["--save_strategy", "no", "--max_grad_norm", "100"]
    main([*words, "--output_dir", str(tmp_path / "1")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["densemllm.train_grpo", *words, "--output_dir", str(tmp_path / "2")]
    ended = subprocess.run(
        [*command, "--per_device_train_batch_size", "2"], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    for one, two in zip(logs_of(tmp_path / "1"), logs_of(tmp_path / "2"), strict=True):
        assert one["reward_std"] == two["reward_std"] == 0 and one["groups_left_out"] == two["groups_left_out"] == 1
        for name in ("grad_norm", "ntp_m_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


# ---- the trainer ----


def make_trainer(folder: Path, samples: DenseDataset, processor, **kwargs) -> DenseGRPOTrainer:
    from trl import GRPOConfig

    options = {name: kwargs.pop(name) for name in list(kwargs) if name in GRPOConfig.__dataclass_fields__}
    args = GRPOConfig(
        **{
            "output_dir": str(folder), "use_cpu": True, "report_to": "none", "bf16": False, "disable_tqdm": True,
            "gradient_checkpointing": False, "per_device_train_batch_size": 4, "num_generations": 2,
            "max_completion_length": 4, "max_steps": 1, "save_strategy": "no", **options,
        }
    )  # fmt: skip
    adapt = kwargs.pop("adapt", lambda model: model)
    return DenseGRPOTrainer(
        model=adapt(make_model(processor, text=LLAMA)), args=args, train_dataset=make_prompts(samples, processor),
        processing_class=processor, reward_funcs=make_rewards(["format", "repetition"], 4, 1),
        dense_collator=DenseCollator(processor), **kwargs,
    )  # fmt: skip


def data_of(rows: list[dict], **kwargs) -> DenseDataset:
    return DenseDataset(DenseSource(rows, id2label=ID2LABEL, is_measured=True, **kwargs))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_dense_gradients_are_those_of_train_hf(tmp_path):
    processor = make_processor()
    samples = data_of(make_samples(3))
    batch = DenseCollator(processor)([samples[place] for place in range(3)])
    batch["labels"] = torch.full_like(batch["labels"], -100)

    args = DenseTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no")
    expected = DenseTrainer(make_model(processor, text=LLAMA), args, data_collator=DenseCollator(processor))
    (counted,), count = expected.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    expected.model.train()
    expected.compute_loss(expected.model, counted, num_items_in_batch=count).backward()

    trainer = make_trainer(tmp_path, samples, processor, dense_loss_weight=0.5)
    trainer.model.train()
    own = {name: value for name, value in batch.items() if name != "labels"}
    trainer.dense_loss(trainer.model, own).backward()
    found = gradients(trainer.model)
    assert found.keys() == gradients(expected.model).keys()
    for name, value in gradients(expected.model).items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_dense_loss_of_a_step_is_that_of_its_samples(tmp_path, monkeypatch, steps):
    """Every reward alike, so that the gradient is that of the dense loss, times its weight: of each micro-batch's
    samples, divided by the count of all of them."""
    processor = make_processor()
    samples = data_of(make_samples(4))
    trainer = make_trainer(
        tmp_path, samples, processor, dense_loss_weight=0.5, max_grad_norm=0.0, gradient_accumulation_steps=steps
    )
    trainer.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)] * 2
    used, kept = [], {}

    def collate(chosen, own=trainer.dense_collator):
        used.append(chosen)
        return own(chosen)

    def keep(*args, **kwargs):
        kept.update({name: value.clone() for name, value in gradients(trainer.model).items()})

    trainer.dense_collator = collate
    before = make_model(processor, text=LLAMA)
    trainer.create_optimizer()
    monkeypatch.setattr(trainer.optimizer, "step", keep)
    trainer.train()
    assert len(used) == steps and all(1 <= len(chosen) <= 4 for chosen in used)

    before.train()
    batches = [DenseCollator(processor)(chosen) for chosen in used]
    losses, counts = [], []
    for batch in batches:
        batch.pop("labels")
        losses.append(before(**batch, num_dense_items_in_batch=1).loss)
        counts.append(int((batch["dense_candidates"] >= 0).sum()))
    (0.5 * sum(losses) / sum(counts)).backward()
    assert kept.keys() == gradients(before).keys()
    for name, value in gradients(before).items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_advantages_are_finite_and_groups_alike_are_left_out(tmp_path):
    processor = make_processor()
    trainer = make_trainer(tmp_path, data_of(make_samples(4)), processor, filter_groups=True)
    values = iter([0.25, 0.75, 0.5, 0.5])
    trainer.reward_funcs = [
        lambda completions, **columns: [next(values) for _ in completions],
        lambda completions, **columns: [None] * len(completions),
    ]
    trainer.model.train()
    rows = [row for place in (0, 1) for row in [trainer.train_dataset[place]] * 2]
    batch = trainer._generate_and_score_completions(rows)
    assert torch.isfinite(batch["advantages"]).all()
    assert batch["advantages"][0] < 0 < batch["advantages"][1] and (batch["advantages"][2:] == 0).all()
    assert (batch["completion_mask"][:2].sum(dim=1) > 0).all() and not batch["completion_mask"][2:].any()
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    trainer.current_gradient_accumulation_steps = 1  # which `train` says
    assert torch.isfinite(trainer._compute_loss(trainer.model, batch))


def test_probabilities_of_a_batch_are_those_of_each_answer_alone(tmp_path):
    """Images of different sizes, so that prompts are padded: as the trainer scores them, and without TRL."""
    processor = make_processor()
    trainer = make_trainer(tmp_path, data_of(make_samples(4)), processor, temperature=1.0)
    trainer.model.train()
    rows = [trainer.train_dataset[place] for place in (0, 0, 2, 2)]
    batch = trainer._generate_and_score_completions(rows)
    assert len(set(batch["prompt_mask"].sum(dim=1).tolist())) == 2
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
    length = batch["completion_ids"].shape[1]
    images = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images")}
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length, **images)
    plain, patches = make_model(processor, text=LLAMA), batch["image_grid_thw"].prod(dim=1).tolist()
    for row, pixels in enumerate(batch["pixel_values"].split(patches)):
        own, answer = ids[row][mask[row] == 1][None], int(batch["completion_mask"][row].sum())
        logits = plain(
            input_ids=own, pixel_values=pixels, image_grid_thw=batch["image_grid_thw"][row : row + 1]
        ).logits
        expected = logits[0, :-1].log_softmax(dim=-1).gather(1, own[0, 1:, None])[-answer:, 0]
        torch.testing.assert_close(found[row, :answer], expected, rtol=1e-4, atol=1e-4)


# ---- equal images ----


def test_first_equals():
    image, other = torch.randn(8, 5), torch.randn(8, 5)
    swapped = image.flip(0)  # of the same sum
    wide, high = (1, 2, 4), (1, 4, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.uint8):
        images = [part.to(dtype) for part in (image * 9, other * 9, image * 9, swapped * 9, image * 9, other * 9)]
        assert first_equals(images, [wide] * 6) == [0, 1, 0, 3, 0, 1]
        assert first_equals([images[0]] * 3, [wide, high, wide]) == [0, 1, 0]


def test_equal_images_are_encoded_once():
    """As many patches as different images have, and the same features and gradients."""
    processor = make_processor()
    images = [make_image(16, 24, 1), make_image(24, 16, 2), make_image(16, 24, 1), make_image(16, 24, 3)]
    inputs = processor.image_processor(images=[images[place] for place in (0, 1, 2, 3, 1, 0)], return_tensors="pt")
    patches = inputs["image_grid_thw"].prod(dim=1).tolist()
    encoded, found = [], {}
    for name in ("each", "once", "removed"):
        model = make_model(processor, text=LLAMA)
        tower = model.model.vision_tower
        tower.embeddings.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
        if name != "each":
            once = EqualImagesOnce(tower)
        if name == "removed":
            once.remove()
        features = torch.cat(model.get_image_features(**inputs, return_dict=True).pooler_output)
        (features * torch.linspace(-1, 1, len(features))[:, None]).sum().backward()
        found[name] = {"features": features.detach(), **gradients(model)}
    assert encoded == [sum(patches), patches[0] + patches[1] + patches[3], sum(patches)]
    assert found["each"].keys() == found["once"].keys()
    for name, value in found["each"].items():
        torch.testing.assert_close(found["once"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    EqualImagesOnce(tower)
    named = tower(pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"]).last_hidden_state
    assert len(named) == sum(patches)
    with pytest.raises(ValueError, match="image_grid_thw"):
        tower(inputs["pixel_values"][1:], inputs["image_grid_thw"])
    different = processor.image_processor(images=[images[0], images[3]], return_tensors="pt")
    plain = make_model(processor, text=LLAMA).get_image_features(**different, return_dict=True).pooler_output
    for own, expected in zip(
        model.get_image_features(**different, return_dict=True).pooler_output, plain, strict=True
    ):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_step_encodes_each_image_once(tmp_path, adapted):
    from peft import LoraConfig, get_peft_model

    processor, encoded = make_processor(), []
    trainer = make_trainer(
        tmp_path, data_of(make_samples(4)), processor,
        adapt=lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if adapted else model,
    )  # fmt: skip
    (tower,) = (module for module in trainer.model.modules() if type(module).__name__ == "DenseMLLMVisionModel")
    tower.embeddings.register_forward_pre_hook(lambda module, args: encoded.append(len(args[1])))
    trainer.train()
    assert encoded == [2, 2]  # images of four answers, as they are made and as they are scored


# ---- shared prompts ----


@pytest.mark.parametrize(
    ("attention", "vision_attention"), [("eager", "causal"), ("sdpa", "causal"), ("eager", "bidirectional")]
)
def test_shared_prompts_change_no_probability_and_no_gradient(tmp_path, attention, vision_attention):
    """Answers of different lengths about images of different sizes, in any order, one of them left out."""
    processor = make_processor()
    trainer = make_trainer(tmp_path, data_of(make_samples(4)), processor)
    model = make_model(processor, text=LLAMA, vision_attention=vision_attention)
    model.set_attn_implementation(attention)
    trainer.model.train()
    rows = [trainer.train_dataset[place] for place in (0, 0, 2, 2, 0, 3)]
    batch = trainer._generate_and_score_completions(rows)
    batch["completion_mask"][0, 2:] = 0
    batch["completion_mask"][3] = 0
    order = [3, 0, 5, 1, 2, 4]
    ids, mask = (
        torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1)[order] for name in ("ids", "mask")
    )
    length = batch["completion_ids"].shape[1]
    patches = batch["pixel_values"].split(batch["image_grid_thw"].prod(dim=1).tolist())
    images = {
        "pixel_values": torch.cat([patches[row] for row in order]),
        "image_grid_thw": batch["image_grid_thw"][order], "num_images": [1] * len(order),
    }  # fmt: skip
    add_fused_lm_head(model, trainer.temperature, outputs=("log_probs", "entropy"))
    trainer.model, found = model, []
    is_answer = mask[:, -length:] == 1
    for trainer.share_prompts, batch_size in ((False, None), (True, None), (True, 4)):
        values = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, length, batch_size, compute_entropy=True, **images
        )
        values = [value * is_answer for value in values[:2]]
        (values[0] * torch.linspace(-1, 1, length)).sum().backward()
        found.append({"log_probs": values[0].detach(), "entropy": values[1].detach(), **gradients(model)})
        model.zero_grad()
    for own in found[1:]:
        assert own.keys() == found[0].keys()
        for name, value in found[0].items():
            torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_answers():
    """By hand: two questions of two tokens, the second one padded, with two answers and one."""
    ids = torch.tensor([[7, 8, 1, 2], [0, 9, 3, 0], [7, 8, 4, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 0]])
    packed = pack_answers(ids, mask, 2, [0, 1, 0])
    assert packed.input_ids.tolist() == [[7, 8, 1, 2, 8, 4, 0], [0, 9, 3, 0, 9, 3, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 1, 2, 3]] * 2
    n = IGNORED
    assert packed.labels.tolist() == [[n, n, 1, 2, n, 4, n], [n, n, 3, n, n, n, n]]
    assert packed.sees[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1, 0],
    ]  # fmt: skip
    assert packed.sees[1].int().tolist()[2] == [0, 1, 1, 0, 0, 0, 0]
    of_labels = torch.arange(6)[None] + torch.tensor([[10], [20]])
    assert packed.of_rows(of_labels).tolist() == [[11, 12], [21, 22], [14, 15]]


def test_shared_prompts_need_full_attention(tmp_path):
    processor = make_processor()
    samples = data_of(make_samples(2))
    for option, given, said in (("sliding_window", 4, "full attention"), ("_attn_implementation", "flex", "'flex'")):

        def adapt(model, option=option, given=given):
            setattr(model.config.get_text_config(), option, given)
            return model

        with pytest.raises(ValueError, match=f"`share_prompts` needs .*{said}"):
            make_trainer(tmp_path, samples, processor, adapt=adapt, share_prompts=True)


@pytest.mark.parametrize("more", [["--beta", "0.1"], ["--use_peft", "--lora_r", "2", "--lora_dropout", "0"]])
def test_a_step_with_shared_prompts(source, tmp_path, monkeypatch, more):
    def length(completions, **columns):
        return [float(len(completion[-1]["content"])) for completion in completions]

    monkeypatch.setattr("densemllm.train_grpo.make_rewards", lambda *args: [length])
    words = [str(source / "grpo.yaml"), "--max_steps", "1", "--save_strategy", "no", "--num_generations", "4"]
    words += ["--attn_implementation", "sdpa", *more]
    main([*words, "--output_dir", str(tmp_path / "alone")])
    main([*words, "--output_dir", str(tmp_path / "shared"), "--share_prompts"])
    (alone,), (shared,) = logs_of(tmp_path / "alone"), logs_of(tmp_path / "shared")
    assert alone["grad_norm"] > 0
    for name in ("reward", "loss", "grad_norm", "entropy"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name


def test_samples_know_their_epoch(tmp_path):
    samples = data_of(make_samples(4))
    make_trainer(tmp_path, samples, make_processor(), max_steps=3).train()  # two steps an epoch
    assert samples.epoch == 1


def test_private_parts_of_trl_are_there():
    from trl import GRPOTrainer

    for name in ("_generate_and_score_completions", "_prepare_inputs", "_compute_loss"):
        assert callable(getattr(GRPOTrainer, name)), name
    assert set(make_rewards(["soft_overlong", "format"], 8, 4)[1:]) == set(grpo.get_rewards(["format"]))
