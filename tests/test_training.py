"""The collator, the trainer and the training script."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor
from densemllm import train_hf as script
from densemllm.evaluation.predict import evaluate_dense
from densemllm.train_hf import main, make_datasets, parse_arguments
from densemllm.training import arguments as training_arguments
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.optimizers import Muon
from densemllm.training.samples import Augmentation
from densemllm.training.trainer import DenseTrainer
from repository import require
from tiny import ID2LABEL, LLAMA, YOUTU, make_image, make_model, make_processor, make_samples


FOLDER = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def arguments(folder, **kwargs):
    options = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    return DenseTrainingArguments(output_dir=str(folder), **{**options, **kwargs})


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_collated_answer_continues_the_prompt_of_generation(processor, padding_side):
    processor = make_processor()
    processor.tokenizer.padding_side = padding_side
    samples = make_samples(3)
    batch = DenseCollator(processor, ID2LABEL)(samples)
    for row, sample in enumerate(samples):
        labels = batch["labels"][row]
        present = [ID2LABEL[key] for key in ID2LABEL if key in np.unique(np.array(sample["segmentation"]))]
        answer = "The target categories include " + "".join(f"<ref>{name}</ref>" for name in present) + "."
        assert processor.tokenizer.decode(labels[labels != -100]) == answer + "<|end_of_text|>"
        own = batch["attention_mask"][row] == 1
        assert (batch["input_ids"][row][labels != -100] == labels[labels != -100]).all()
        text = processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "Segment all objects in this image."}],
                }
            ],
            add_generation_prompt=True,
        )
        prompt = processor(images=[sample["image"]], text=[text])["input_ids"][0]
        assert batch["input_ids"][row][own][: len(prompt)].tolist() == list(prompt)


def test_collator_takes_given_conversations(processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    batch = DenseCollator(processor)([{"image": make_image(16, 16), "messages": messages}])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "a cat<|end_of_text|>"
    assert (batch["dense_candidates"] == -1).all()


def test_collator_puts_the_prompt_of_a_known_camera_before_the_image(processor):
    sample = {"image": make_image(16, 16), "depth": np.full((16, 16), 2.0)}
    ids = DenseCollator(processor, depth_range="camera")([sample])["input_ids"][0]
    before = ids[: int((ids == processor.image_token_id).nonzero()[0])]
    assert "depth of the camera data<|vision_start|>" in processor.tokenizer.decode(before)


def test_prompt_of_a_known_camera_is_learned_beside_other_annotations(processor):
    """`predict_dense` asks for that depth with the prompt, and for classes without it."""
    sample, camera = make_samples(2)[1], {"depth_range": "camera"}
    collator = DenseCollator(processor, ID2LABEL)
    depth, classes = collator.entries(sample | camera)
    assert set(depth[1]) == {"depth", "depth_range", "focal_length"} and "depth of the camera" in depth[2][0]
    assert "depth" not in classes[1] and "segmentation" in classes[1] and "depth of the camera" not in classes[2][0]
    chat = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cat"}]
    told = {"image": sample["image"], "depth": sample["depth"], "messages": chat, **camera}
    depth, text = collator.entries(told)
    assert "depth" in depth[1] and text[1] == {} and text[2][1] == "a cat"
    assert len(collator.entries(told | {"messages": None})) == 1
    assert len(collator.entries(sample)) == 1  # a range without a prompt: all at once
    mask = np.zeros(np.asarray(sample["depth"]).shape, bool)
    mask[2:9, 3:12] = True
    entries = collator.entries(sample | camera | {"mask": mask, "expression": "the cat"})
    assert [sorted(set(entry[1]) & {"depth", "mask", "segmentation"}) for entry in entries] == [
        ["depth"], ["segmentation"], ["mask"]
    ]  # fmt: skip


def test_collator_needs_names_for_a_segmentation(processor):
    with pytest.raises(ValueError, match="`id2label` is needed"):
        DenseCollator(processor)(make_samples(2))


def test_accumulation_gives_the_same_step_as_one_batch(processor, tmp_path):
    weights = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        model = make_model(processor)
        trainer = DenseTrainer(
            model=model,
            args=arguments(
                tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=1,
                optim="sgd", learning_rate=0.1, max_grad_norm=0, lr_scheduler_type="constant",
            ),
            train_dataset=make_samples(4),
            data_collator=DenseCollator(processor, ID2LABEL),
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.train()
        weights.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    assert max(float(change.abs().max()) for change in weights[0].values()) > 1e-3
    for other in weights[1:]:
        for name, change in weights[0].items():
            torch.testing.assert_close(other[name], change, atol=1e-6, rtol=1e-4, msg=name)


def test_evaluation_counts_every_annotated_pixel(processor):
    model = make_model(processor)
    samples = make_samples(5)[1:]
    metrics = evaluate_dense(model, processor, samples, ID2LABEL, batch_size=3)
    hits = total = 0
    for sample in samples:
        predicted = model.predict_dense(sample["image"], labels=ID2LABEL, processor=processor).segmentation.numpy()
        reference = np.array(sample["segmentation"])
        hits += int(((predicted == reference) & (reference != 255)).sum())
        total += int((reference != 255).sum())
    assert metrics["pixel_accuracy"] == pytest.approx(hits / total, abs=1e-3)
    assert 0 <= metrics["delta1"] <= metrics["delta2"] <= metrics["delta3"] <= 1


def launch(script, *args, processes=1):
    """Run a script of this folder, in two processes over gloo if asked for."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), FOLDER / script, *map(str, args)]
    path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["trainer", "fully_shard"])
def test_two_processes_give_the_gradients_of_one(tmp_path, mode):
    for processes in (1, 2):
        run = launch("distributed_step.py", mode, tmp_path / f"{processes}.pt", processes=processes)
        assert run.returncode == 0, run.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert max(float(change.abs().max()) for change in one.values()) > 1e-3
    for name, change in one.items():
        torch.testing.assert_close(two[name], change, atol=1e-6, rtol=1e-4, msg=name)


def test_packing_of_micro_batches_does_not_matter(processor):
    """The same samples, cut into micro-batches in three ways, with the global counts."""
    samples, collator = make_samples(4), DenseCollator(processor, ID2LABEL)
    gradients = []
    for cuts in ([4], [1, 3], [2, 1, 1]):
        # With all negatives there is no near-tie at the last one that other batches could break the other way.
        model = make_model(processor, ntp_m_top_k=10**6).train()
        trainer = DenseTrainer(model, arguments("unused"), data_collator=collator)
        rest, batches = iter(samples), []
        for count in cuts:
            batches.append(collator([next(rest) for _ in range(count)]))
        batches, count = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        for batch in batches:
            trainer.compute_loss(model, batch, num_items_in_batch=count).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def make_trainer(folder, processor, **kwargs):
    """A run of 6 steps over shuffled, augmented, mixed samples."""
    sources = [DenseSource(make_samples(5), 2.0, ID2LABEL), DenseSource(make_samples(3, seed=1), 1.0, ID2LABEL)]
    options = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    return DenseTrainer(
        make_model(processor),
        arguments(folder, **{**options, **kwargs}),
        train_dataset=DenseDataset(sources, Augmentation((0.8, 1.2), None, 0.5, 0.3)),
        eval_dataset=DenseDataset(DenseSource(make_samples(4)[1:], None, ID2LABEL)),
        data_collator=DenseCollator(processor),
        processing_class=processor,
    )


def losses(trainer):
    return {row["step"]: (row["loss"], row["ntp_m_loss"]) for row in trainer.state.log_history if "ntp_m_loss" in row}


@pytest.mark.parametrize("options", [{}, {"muon_learning_rate": 1e-2, "weight_decay": 0.1}], ids=["adamw", "muon"])
def test_resumed_run_repeats_the_losses(processor, tmp_path, options):
    whole = make_trainer(tmp_path / "whole", processor, **options)
    whole.train()
    assert list(losses(whole)) == [1, 2, 3, 4, 5, 6]
    for step in (2, 4):
        resumed = make_trainer(tmp_path / "resumed", processor, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        for later in range(step + 1, 7):
            assert losses(resumed)[later] == pytest.approx(losses(whole)[later], rel=1e-5), (step, later)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["weights", "optimizer", "state"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(processor, tmp_path, moment):
    run = launch("killed_run.py", tmp_path / "killed", moment)
    assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
    assert get_last_checkpoint(tmp_path / "killed").endswith("checkpoint-2")
    resumed, whole = (make_trainer(tmp_path / name, processor) for name in ("killed", "whole"))
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert losses(resumed)[6] == pytest.approx(losses(whole)[6], rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [f"checkpoint-{n}" for n in (2, 4, 6)]
    assert DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "killed/checkpoint-6") is not None


def test_best_checkpoint_is_kept_where_the_folder_has_moved(processor, tmp_path):
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1,
        "metric_for_best_model": "mean_iou", "greater_is_better": True,
    }  # fmt: skip
    first = make_trainer(tmp_path / "before", processor, **{**options, "max_steps": 2})
    first.train()
    os.rename(tmp_path / "before", tmp_path / "after")
    state = tmp_path / "after/checkpoint-2/trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_metric": 2.0}))  # no later one is better
    resumed = make_trainer(tmp_path / "after", processor, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert resumed.state.best_model_checkpoint == str(tmp_path / "after/checkpoint-2")
    kept = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "after/checkpoint-2")
    torch.testing.assert_close(resumed.model.lm_head.weight, kept.lm_head.weight)


def test_metrics_are_of_the_collators_range_and_of_one_vocabulary(processor, tmp_path):
    samples = make_samples(4)[1:]
    collator = DenseCollator(processor, ID2LABEL, depth_range="camera")
    model = make_model(processor)
    trainer = DenseTrainer(model, arguments(tmp_path), data_collator=collator,
                           eval_dataset=DenseDataset(DenseSource(samples)))  # fmt: skip
    trainer.eval_dataset.sources[0].columns = ("image", "depth")
    trainer.eval_dataset.set_epoch(3)
    expected = evaluate_dense(model, processor, samples, None, "camera")["abs_rel"]
    assert trainer.evaluate()["eval_abs_rel"] == pytest.approx(expected, rel=1e-5)
    assert trainer.eval_dataset.epoch == 3
    others = DenseDataset([DenseSource(samples, None, ID2LABEL), DenseSource(samples, None, {0: "sky"})])
    with pytest.raises(ValueError, match="`eval_dataset` differ in `id2label`"):
        DenseTrainer(model, arguments(tmp_path), data_collator=collator, eval_dataset=others)


def test_plain_training_arguments_do(processor, tmp_path):
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
    collator, samples = DenseCollator(processor, ID2LABEL), Dataset.from_list(make_samples(4)[1:])
    trainer = DenseTrainer(make_model(processor), TrainingArguments(**plain), data_collator=collator,
                           train_dataset=samples)  # fmt: skip
    assert trainer.train().training_loss > 0
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be 0"):
        DenseTrainer(
            make_model(processor), TrainingArguments(**plain, label_smoothing_factor=0.1), data_collator=collator
        )


def test_logs_name_both_losses_and_counts(processor, tmp_path):
    samples, collator = make_samples(4), DenseCollator(processor, ID2LABEL)
    args = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3, logging_steps=3
    )
    trainer = DenseTrainer(make_model(processor), args, train_dataset=samples, data_collator=collator)
    trainer.train()
    row, batch = trainer.state.log_history[0], collator(samples)
    assert row["loss"] == pytest.approx(row["text_loss"] + row["ntp_m_loss"], rel=1e-5)
    assert row["positives"] == (batch["dense_targets"] >= 0).sum()
    assert row["dense_tokens"] == (batch["dense_candidates"] >= 0).sum()
    assert row["tokens_per_second"] > 0


def test_batches_have_pictures_of_like_sizes(processor, tmp_path):
    edges = np.random.default_rng(0).permutation(np.arange(8, 8 + 8 * 160, 8)).tolist()
    rows = [{"image": make_image(edge, 8), "mask": np.ones((edge, 8), bool)} for edge in edges]
    args = arguments(tmp_path, per_device_train_batch_size=4, train_sampling_strategy="group_by_length")
    trainer = DenseTrainer(make_model(processor), args, train_dataset=DenseDataset(DenseSource(rows)),
                           data_collator=DenseCollator(processor), processing_class=processor)  # fmt: skip
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    orders = []
    for epoch in (0, 0, 1):
        trainer.train_dataset.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(160))
    assert orders[0] == orders[1] != orders[2]
    spread = np.array(edges)[np.array(orders[0])].reshape(-1, 4)
    assert np.ptp(spread, axis=1).mean() < 0.5 * np.ptp(np.array(edges).reshape(-1, 4), axis=1).mean()
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0  # in order, of whatever sizes


def test_evaluation_while_training_keeps_the_best_checkpoint(processor, tmp_path):
    trainer = make_trainer(
        tmp_path, processor, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, save_total_limit=1,
        metric_for_best_model="mean_iou", greater_is_better=True, early_stopping_patience=3,
    )  # fmt: skip
    trainer.train()
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"eval_mean_iou", "eval_delta1", "eval_pixel_accuracy"} <= set(rows[0])
    best = max(rows, key=lambda row: row["eval_mean_iou"])
    assert trainer.state.best_metric == best["eval_mean_iou"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    kept = DenseMLLMForConditionalGeneration.from_pretrained(trainer.state.best_model_checkpoint)
    torch.testing.assert_close(trainer.model.lm_head.weight, kept.lm_head.weight)
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2
    metrics = trainer.evaluate()
    assert metrics["eval_mean_iou"] == pytest.approx(trainer.state.best_metric)

    trainer.create_model_card(finetuned_from="some/base", dataset="rooms", license="apache-2.0")
    card = ModelCard.load(tmp_path / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["mean_iou"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-4)
    assert card.data.base_model == "some/base" and card.data.license == "apache-2.0"


def test_parts_have_learning_rates_of_their_own(processor, tmp_path):
    model = make_model(processor)
    trainer = DenseTrainer(
        model, arguments(tmp_path, learning_rate=3e-4, vision_tower_learning_rate=1e-5, projector_learning_rate=1e-3)
    )
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = 1e-5 if "vision_tower" in name else 1e-3 if "projector" in name else 3e-4
        assert rates[id(parameter)] == expected, name
    assert set(decays.values()) == {0.0} and trainer.create_optimizer() is optimizer


def test_muon_updates_inner_matrices(processor, tmp_path):
    options = {"muon_learning_rate": 1e-2, "weight_decay": 0.1}
    trainer = make_trainer(tmp_path, processor, max_steps=2, lr_scheduler_type="linear", **options)
    optimizer = trainer.create_optimizer()
    groups = {id(p): (name, group) for name, part in optimizer.parts.items() for group in part.param_groups
              for p in group["params"]}  # fmt: skip
    assert len(groups) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        kind, group = groups[id(parameter)]
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        assert kind == ("muon" if inner else "adamw"), name
        assert group["lr"] == (1e-2 if inner else 1e-3)
        assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name
    weight = trainer.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    before = weight.detach().clone()
    trainer.train()
    bias = trainer.model.model.vision_tower.encoder.layers[0].mlp.fc1.bias
    assert optimizer.state[bias] and "momentum_buffer" in optimizer.state[weight]
    with pytest.raises(KeyError):
        optimizer.state["nothing"]
    optimizer.load_state_dict(optimizer.state_dict())  # looking has changed nothing
    with pytest.raises(ValueError, match="muon_learning_rate"):
        optimizer.load_state_dict(optimizer.parts["adamw"].state_dict())
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}  # the schedule has reached both
    # All directions of a matrix are moved alike, by 0.2 times the root of its larger side at a rate of 1 (weight decay
    # apart): 1 step at the whole rate and 1 at half of it, which may turn.
    sizes = torch.linalg.svdvals(weight.detach() - before) / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
    assert 0.4 < sizes.median() and sizes.max() < 2.5


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_muon_is_that_of_torch_on_any_cpu(monkeypatch, capability):
    """A CPU that emulates bfloat16 computes in float32: the same update, to what bfloat16 leaves open."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 40), (40, 12), (16, 16)):
        start = torch.randn(shape, generator=generator)
        own, torchs, still = (torch.nn.Parameter(start.clone()) for _ in range(3))
        options = {"lr": 1e-2, "weight_decay": 0.1}
        optimizers = (
            Muon([{"params": [own, still], **options}]),
            torch.optim.Muon([{"params": [torchs], **options}], adjust_lr_fn="match_rms_adamw"),
        )
        for _ in range(3):
            own.grad = torch.randn(shape, generator=generator)
            torchs.grad = own.grad.clone()
            losses = [optimizer.step(lambda: 2.5) for optimizer in optimizers]
            assert losses == [2.5, 2.5]
        moved = (torchs - start).norm()
        assert moved > 0.05 and (own - torchs).norm() <= (0.0 if capability == "AVX512" else 0.03) * moved
        assert torch.equal(still, start)  # without a gradient
        torch.testing.assert_close(
            optimizers[0].state[own]["momentum_buffer"], optimizers[1].state[torchs]["momentum_buffer"]
        )


def test_bf16_on_a_cpu_that_emulates_it_is_said(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(training_arguments.logger, "warning_once", said.append)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    arguments(tmp_path, bf16=True, use_cpu=True)
    assert not said
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    arguments(tmp_path, use_cpu=True)
    assert not said
    arguments(tmp_path, bf16=True, use_cpu=True)
    assert "leave it out" in said[0]


def test_going_on_with_another_optimizer_is_named(processor, tmp_path):
    muon = {"muon_learning_rate": 1e-2}
    for before, after, match in ((muon, {}, "was trained with"), ({}, muon, "was trained without")):
        folder = tmp_path / match.replace(" ", "_")
        make_trainer(folder, processor, max_steps=1, save_steps=1, **before).train()
        with pytest.raises(ValueError, match=match):
            make_trainer(folder, processor, max_steps=2, **after).train(resume_from_checkpoint=True)


def test_muon_has_one_rate(tmp_path):
    with pytest.raises(ValueError, match="muon_learning_rate` is one for all parts"):
        arguments(tmp_path, muon_learning_rate=1e-2, projector_learning_rate=1e-3)
    with pytest.raises(ValueError, match="muon_learning_rate` must be at least 0"):
        arguments(tmp_path, muon_learning_rate=-1e-2)


@pytest.fixture
def start(processor, tmp_path):
    """A checkpoint and a data set on disk, and the arguments of the script for them."""
    make_model(processor).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    Dataset.from_list(make_samples(6)[1:]).save_to_disk(tmp_path / "data")
    (tmp_path / "data/id2label.json").write_text(json.dumps(ID2LABEL))
    return {
        "model_name_or_path": str(tmp_path / "start"), "dataset": [str(tmp_path / "data")],
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": "1e-2",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def run_script(tmp_path, start, **kwargs):
    (tmp_path / "config.json").write_text(json.dumps({**start, **kwargs}))
    return main([str(tmp_path / "config.json")])


def changed(start, out):
    """Names of the weights that differ."""
    before = DenseMLLMForConditionalGeneration.from_pretrained(start["model_name_or_path"]).state_dict()
    after = DenseMLLMForConditionalGeneration.from_pretrained(out).state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("part", "name"), [("vision_tower", None), ("projector", "multi_modal_projector"), ("language_model", None)]
)
def test_frozen_parts_stay(tmp_path, start, part, name):
    run_script(tmp_path, start, **{f"freeze_{part}": True})
    names = changed(start, tmp_path / "out")
    assert names and not any((name or part) in changed_name for changed_name in names)
    assert part != "language_model" or "lm_head.weight" not in names


def test_adapters_are_merged(tmp_path, start, processor):
    run_script(tmp_path, start, use_peft=True, lora_r=4, max_steps=3)
    names = changed(start, tmp_path / "out")
    assert any("language_model" in name for name in names) and not any("vision_tower" in name for name in names)
    base = DenseMLLMForConditionalGeneration.from_pretrained(start["model_name_or_path"]).eval()
    merged = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    image, options = make_image(24, 32), {"task": "depth", "return_logits": True}
    plain = base.predict_dense(image, **options).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "out/adapters").eval()
    torch.testing.assert_close(
        merged.predict_dense(image, **options).logits, adapted.predict_dense(image, **options).logits
    )
    assert not torch.allclose(plain, merged.predict_dense(image, **options).logits, atol=1e-3)
    # peft finds the base model by itself, with the package imported and by the code beside the base.
    for flag in ({}, {"trust_remote_code": True}):
        for folder in (tmp_path / "out/adapters", tmp_path / "out/checkpoint-3"):
            loaded = AutoPeftModelForCausalLM.from_pretrained(str(folder), **flag).eval()
            torch.testing.assert_close(
                loaded.predict_dense(image, **options).logits, adapted.predict_dense(image, **options).logits
            )


@pytest.mark.skipif("densemllm" not in LORA_TARGETS, reason="this peft takes lists of names only")
@pytest.mark.parametrize("text", [YOUTU, LLAMA], ids=["youtu", "llama"])
def test_adapters_without_targets_are_on_every_linear_layer_but_the_head(processor, text):
    model = get_peft_model(make_model(processor, text=text), LoraConfig(r=2))
    base = model.get_base_model()
    adapted = {name.removesuffix(".base_layer") for name, _ in base.named_modules() if name.endswith(".base_layer")}
    plain = make_model(processor, text=text).named_modules()
    linear = {name for name, module in plain if isinstance(module, torch.nn.Linear)}
    assert adapted == linear - {"lm_head"}


def test_bf16_and_gradient_checkpointing_train(tmp_path, start):
    metrics = run_script(tmp_path, start, bf16=True, gradient_checkpointing=True, max_steps=4)
    assert np.isfinite(metrics["train_loss"]) and changed(start, tmp_path / "out")


def test_streams_train_and_resume(tmp_path, start):
    """5 samples are 2.5 batches: step 4 is in the second round."""
    options = {"streaming": True, "max_steps": 6, "save_steps": 4, "logging_steps": 1, "flip_probability": 0.5}
    rows = []
    for resume in (None, str(tmp_path / "out/checkpoint-4")):
        run_script(tmp_path, start, **options, resume_from_checkpoint=resume)
        log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
        rows.append({row["step"]: row["loss"] for row in log if "loss" in row})
    assert set(rows[0]) == set(range(1, 7)) and len(set(rows[0].values())) == 6
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


def test_weights_are_trained_in_float32(tmp_path, start):
    """Most steps of 2e-5 would be lost in weights of 16 bits."""
    half = DenseMLLMForConditionalGeneration.from_pretrained(start["model_name_or_path"], dtype=torch.bfloat16)
    half.save_pretrained(start["model_name_or_path"])
    args = [f"--output_dir={tmp_path}", "--dataset=a", f"--model_name_or_path={start['model_name_or_path']}"]
    for more, dtype in ((), torch.float32), (("--use_peft",), torch.bfloat16), (("--dtype=bfloat16",), torch.bfloat16):
        model, _ = script.make_model(parse_arguments([*args, *more])[0])
        assert next(model.parameters()).dtype == dtype, more


def test_evaluation_data_has_the_names_range_and_columns_of_its_own(tmp_path, start):
    Dataset.from_list(make_samples(3)[1:]).save_to_disk(tmp_path / "other")
    for name, labels in (("a", ID2LABEL), ("b", {key: f"other {key}" for key in ID2LABEL})):
        (tmp_path / f"{name}.json").write_text(json.dumps(labels))
    data, other = start["dataset"][0], str(tmp_path / "other")
    words = [
        "--output_dir", "out", "--dataset", data, other, "--eval_split", "train",
        "--id2label", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--depth_range", "room", "camera",
        "--columns", "image,depth", "image,segmentation",
    ]  # fmt: skip
    for name, label, row, columns in ((None, "wall", "room", ["image", "depth"]),
                                      (other, "other 0", "camera", ["image", "segmentation"])):  # fmt: skip
        more = [] if name is None else ["--eval_dataset", name]
        (source,) = make_datasets(parse_arguments([*words, *more])[1], 0)[1].sources
        assert (source.depth_range, source.columns) == (row, columns)
        assert source.id2label[0] == (ID2LABEL[0] if name is None else label)
    shutil.copytree(other, tmp_path / "third")
    with pytest.raises(ValueError, match="none of `dataset`: which `id2label`"):
        make_datasets(parse_arguments([*words, "--eval_dataset", str(tmp_path / "third")])[1], 0)


def test_configuration_file_and_command_line(tmp_path, start):
    (tmp_path / "one.yaml").write_text(f"dataset: DATA\nid2label: l.json\noutput_dir: {tmp_path}")
    data = parse_arguments([str(tmp_path / "one.yaml")])[1]
    assert (data.dataset, data.id2label) == (["DATA"], ["l.json"])
    lines = ["model_name_or_path: some/model", "dataset: [a, b]", "dataset_weights: [2, 1]", "learning_rate: 1e-4"]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, f"output_dir: {tmp_path}"]))
    model, data, args = parse_arguments([str(tmp_path / "config.yaml"), "--learning_rate", "2e-5"])
    assert (model.model_name_or_path, data.dataset, data.dataset_weights) == ("some/model", ["a", "b"], [2, 1])
    assert args.learning_rate == 2e-5
    assert parse_arguments([str(tmp_path / "config.yaml")])[2].learning_rate == 1e-4
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "learningrate: 1"]))
    with pytest.raises(ValueError, match="learningrate"):
        parse_arguments([str(tmp_path / "config.yaml")])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model_name_or_path": None}, "`model_name_or_path`"),
        ({"text_model": "some/llm"}, "`model_name_or_path`"),
        ({"load_in_4bit": True}, "`load_in_4bit` needs CUDA"),
        ({"dataset_weights": [1.0, 2.0]}, "`dataset_weights`"),
        ({"random_scale": [2.0, 1.0]}, "`scale`"),
        ({"max_num_patches": 0}, "`max_num_patches` must be"),
        ({"max_num_patches": 3}, "one vision token"),
        (
            {"freeze_vision_tower": True, "freeze_projector": True, "freeze_language_model": True},
            "every part is frozen",
        ),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tmp_path, start, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run_script(tmp_path, start, **kwargs)
    assert not (tmp_path / "out").exists()


def test_images_of_batches_are_capped_and_those_of_the_saved_processor_are_not(processor):
    own, samples = processor.image_processor.max_num_patches, make_samples(3)
    free, capped = (
        DenseCollator(processor, ID2LABEL, max_num_patches=cap)(samples)["image_grid_thw"].prod(dim=1)
        for cap in (None, 6)
    )
    assert free.max() > 6 >= capped.max() and processor.image_processor.max_num_patches == own


@pytest.mark.slow
def test_the_script_trains_saves_and_evaluates(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    Dataset.from_list(make_samples(6)[1:]).save_to_disk(tmp_path / "data")
    (tmp_path / "id2label.json").write_text(json.dumps(ID2LABEL))
    metrics = main(
        [
            "--model_name_or_path", str(tmp_path / "start"), "--dataset", str(tmp_path / "data"),
            "--id2label", str(tmp_path / "id2label.json"), "--output_dir", str(tmp_path / "out"),
            "--per_device_train_batch_size", "2", "--max_steps", "4", "--learning_rate", "1e-3",
            "--eval_split", "train", "--report_to", "none", "--use_cpu",
        ]
    )  # fmt: skip
    assert 0 <= metrics["eval_mean_iou"] <= 1 and metrics["train_loss"] > 0
    model = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = DenseMLLMProcessor.from_pretrained(tmp_path / "out")
    again = evaluate_dense(model, processor, make_samples(6)[1:], ID2LABEL)
    assert again["mean_iou"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-3)
    start = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path / "start")
    assert not torch.equal(start.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", ["finetune.yaml", "lora.yaml"])
def test_example_configurations_are_understood(name, tmp_path):
    model, data, args = parse_arguments(
        [str(require("examples/configs") / name), "--output_dir", str(tmp_path), "--use_cpu", "True"]
    )
    assert data.dataset == ["DATA"] and args.bf16 and model.use_peft == (name == "lora.yaml")


def test_launcher_configurations_are_well_formed():
    folder = require("examples/configs")
    for name, machines in (("fsdp_one_node.yaml", 1), ("fsdp_two_nodes.yaml", 2)):
        config = load_config_from_file(str(folder / name))
        assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
        accepted = inspect.signature(FullyShardedDataParallelPlugin).parameters
        names = {key: key if key in accepted else key.removeprefix("fsdp_") for key in config.fsdp_config}
        plugin = FullyShardedDataParallelPlugin(
            **{names[key]: value for key, value in config.fsdp_config.items() if names[key] in accepted}
        )
        layers = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        modules = {type(module).__name__ for module in make_model(make_processor()).modules()}
        assert set(layers) <= modules and plugin.fsdp_version == 2
    assert (
        json.loads((require("examples/configs") / "deepspeed_zero3.json").read_text())["zero_optimization"]["stage"]
        == 3
    )
