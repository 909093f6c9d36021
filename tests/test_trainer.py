"""What the trainer promises of losses, checkpoints, class names and metrics, and what it uses of `Trainer`."""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from densemllm import DenseMLLMForConditionalGeneration
from densemllm import modeling_densemllm as modeling
from densemllm.evaluation.metrics import DepthMetrics, ReferringMetrics, SegmentationMetrics, greater_is_better
from densemllm.training import trainer as module
from densemllm.training.arguments import DenseTrainingArguments
from densemllm.training.collator import DenseCollator
from densemllm.training.datasets import DenseDataset, DenseSource
from densemllm.training.trainer import DenseTrainer
from tiny import ID2LABEL, make_image, make_model, make_processor, make_samples


PLAIN = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_trainer(folder, processor, model=None, data=None, cls=DenseTrainer, trainer_options=None, **options):
    data = make_samples(4) if data is None else data
    arguments = DenseTrainingArguments if cls is DenseTrainer else TrainingArguments
    return cls(
        make_model(processor) if model is None else model,
        arguments(output_dir=str(folder), remove_unused_columns=False, **{**PLAIN, "max_steps": 1, **options}),
        train_dataset=data,
        data_collator=DenseCollator(processor, ID2LABEL),
        processing_class=processor,
        **(trainer_options or {}),
    )


# ---- what is used of `Trainer` ----

PRIVATE = {"_save_checkpoint", "_get_output_dir", "_push_from_checkpoint"}


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_private_methods_of_the_trainer_are_there(name):
    assert callable(getattr(Trainer, name, None)), f"transformers {transformers.__version__} has no Trainer.{name}"


def test_no_other_private_part_is_used(processor, tmp_path):
    own = {name for name in vars(DenseTrainer) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in own if hasattr(Trainer, name)} == PRIVATE
    trainer = make_trainer(tmp_path, processor)
    assert trainer._train_batch_size == 8
    source = Path(module.__file__).read_text(encoding="utf-8")
    listed = source.split("# Private parts of `Trainer`")[1].split("\n\n")[0]
    assert all(f"`{name}`" in listed for name in (*PRIVATE, "_train_batch_size", "_internal_call"))


# ---- losses ----


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_plain_trainer_does_not_multiply_ntp_m_by_accumulation(processor, tmp_path, steps):
    trainer = make_trainer(
        tmp_path, processor, cls=Trainer, gradient_accumulation_steps=steps, per_device_train_batch_size=4 // steps,
        logging_steps=1,
    )  # fmt: skip
    trainer.train()
    batch = trainer.data_collator(make_samples(4))
    expected = make_model(processor).train()(**batch).loss
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=0.02)


def test_a_count_for_one_loss_alone_is_refused(processor):
    model, batch = make_model(processor), DenseCollator(processor, ID2LABEL)(make_samples(2))
    with pytest.raises(ValueError, match="num_dense_items_in_batch"):
        model(**batch, num_items_in_batch=100)
    counts = {"num_items_in_batch": 100, "num_dense_items_in_batch": 200}
    whole, divided = model(**batch), model(**batch, **counts)
    texts = int((batch["labels"][:, 1:] != -100).sum())
    assert divided.text_loss.item() == pytest.approx(whole.text_loss.item() * texts / 100, rel=1e-4)
    del batch["dense_targets"], batch["dense_candidates"], batch["dense_candidate_ranges"]
    assert model(**batch, num_items_in_batch=100).loss is not None  # text alone: as everywhere


def test_a_trainer_with_a_head_of_its_own_is_told_that_ntp_m_is_missing(processor):
    """As TRL's `SFTTrainer` calls the model: its backbone, with all that the batch has but labels."""
    model, batch = make_model(processor), DenseCollator(processor, ID2LABEL)(make_samples(2))
    batch.pop("labels")
    with pytest.raises(ValueError, match="lack the NTP-M loss: train with `DenseTrainer`"):
        model.base_model(**batch, use_cache=False)
    batch = {name: value for name, value in batch.items() if not name.startswith("dense_")}
    assert model.base_model(**batch).last_hidden_state is not None


def test_a_loss_from_logits_that_are_left_out_is_warned_of(processor, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(modeling.logger, "warning_once", said.append)
    trainer = make_trainer(
        tmp_path, processor, cls=Trainer, trainer_options={"compute_loss_func": lambda outputs, *_, **__: outputs.loss}
    )
    trainer.train()
    assert len(said) == 1 and "would lack NTP-M: take `loss` of the output" in said[0]
    make_trainer(tmp_path, processor, cls=Trainer).train()
    assert len(said) == 1


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1}, {"torch_compile": True}])
@pytest.mark.parametrize("cls", [DenseTrainingArguments, TrainingArguments])
def test_arguments_that_spoil_the_losses_are_refused(processor, tmp_path, cls, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        DenseTrainer(make_model(processor), cls(output_dir=str(tmp_path), **PLAIN, **options))


def test_a_loss_function_of_its_own_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="`compute_loss_func` must be left out"):
        make_trainer(tmp_path, processor, trainer_options={"compute_loss_func": lambda *_, **__: 0})


def test_batches_without_text_have_a_finite_loss_and_one_step_in_any_parts(processor, tmp_path):
    """Depth alone: no label is learned, and the count of labels is 0."""
    samples = [{name: sample[name] for name in ("image", "depth")} for sample in make_samples(5)[1:]]
    losses = []
    for steps in (1, 2, 4):
        trainer = make_trainer(
            tmp_path, processor, data=samples, gradient_accumulation_steps=steps, logging_steps=1,
            per_device_train_batch_size=4 // steps,
        )  # fmt: skip
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] > 0 and losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert trainer.evaluate(DenseDataset(DenseSource(samples)))["eval_loss"] > 0


def test_a_run_that_supervises_nothing_stops_with_a_sentence(processor, tmp_path):
    millimetres = [{"image": make_image(16, 16), "depth": np.full((16, 16), 3000.0)} for _ in range(4)]
    for steps in (1, 50):
        trainer = make_trainer(
            tmp_path, processor, data=millimetres, max_steps=steps, per_device_train_batch_size=1,
            save_strategy="steps", save_steps=100,
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"supervise nothing: .*`depth_scale`"):
            trainer.train()
        assert trainer.state.global_step < min(steps, 11)


def test_a_few_samples_without_supervision_are_put_up_with(processor, tmp_path):
    nothing = [{"image": make_image(16, 16), "depth": np.zeros((16, 16))} for _ in range(3)]
    data = nothing + make_samples(2)[1:]
    trainer = make_trainer(
        tmp_path, processor, data=data, max_steps=4, per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    assert trainer.train().global_step == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(processor, tmp_path, value):
    model = make_model(processor)
    trainer = make_trainer(tmp_path, processor, model, max_steps=3, save_strategy="steps", save_steps=1)

    class Spoil(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                model.lm_head.weight.data.fill_(value)

    trainer.add_callback(Spoil())
    with pytest.raises(ValueError, match=r"loss of step 2 is not finite \(text_loss"):
        trainer.train()
    assert trainer.state.global_step == 1


# ---- class names ----


def test_the_model_names_the_classes_that_it_was_trained_on(processor, tmp_path):
    model = make_model(processor)
    model.config.id2label, model.config.label2id = {0: "old"}, {"old": 0}
    data = DenseDataset(DenseSource(make_samples(3)[1:], None, {0: "sky", 1: "grass", 2: "tree"}))
    trainer = make_trainer(tmp_path, processor, model, data)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    config = DenseMLLMForConditionalGeneration.from_pretrained(tmp_path).config
    assert config.id2label == {0: "sky", 1: "grass", 2: "tree"}
    assert config.label2id == {"sky": 0, "grass": 1, "tree": 2}
    card = (tmp_path / "README.md").read_text()
    assert "sky, grass, tree" in card and "old" not in card


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([{0: "sky", 2: "tree"}, {1: "grass", 2: "tree"}], {0: "sky", 1: "grass", 2: "tree"}),
        ([{0: "sky", 1: "grass"}, {0: "wall", 1: "sky"}], {0: "sky", 1: "grass", 2: "wall"}),
        ([{0: "sky"}, {5: "sky"}], {0: "sky"}),
        (
            [None, {7: "cup"}],
            {0: "wall", 1: "floor", 2: "red ball", 7: "cup"},
        ),
    ],
)
def test_several_data_sets_give_their_union(processor, tables, expected):
    sources = [DenseSource(make_samples(2), None, table) for table in tables]
    assert module.learned_labels(sources, DenseCollator(processor, ID2LABEL)) == expected


def test_names_of_what_is_not_learned_stay_out(processor, tmp_path):
    depth = DenseSource(Dataset.from_list([{"image": None, "depth": None}]), None, {0: "never"})
    skipped = DenseSource(make_samples(2), None, {0: "never"}, columns=["image", "depth"])
    assert module.learned_labels([depth, skipped], DenseCollator(processor)) is None
    model = make_model(processor)
    for given, expected in (({}, model.config.id2label), ({3: "car"}, {3: "car"})):
        make_trainer(tmp_path, processor, model, trainer_options={"id2label": given}).train()
        assert model.config.id2label == expected


# ---- metrics ----


def test_metrics_know_their_direction():
    for metrics, best, worst in (
        (DepthMetrics(), np.full((2, 2), 2.0), np.array([[4.0, 9.0], [5.0, 1.0]])),
        (SegmentationMetrics(2), np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 0]])),
        (ReferringMetrics(), np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 0]])),
    ):
        values = [metrics.compute(metrics.count(prediction, best)) for prediction in (best, worst)]
        for name in values[0]:
            if not name.startswith("per_label"):
                assert greater_is_better(name) is (values[0][name] > values[1][name]), name
    assert greater_is_better("eval_kitti_abs_rel") is False and greater_is_better("eval_mean_iou") is True
    assert greater_is_better("loss") is greater_is_better("my_score") is greater_is_better(None) is None


@pytest.mark.parametrize("metric", ["abs_rel", "eval_rmse", "silog", "mean_iou", "eval_rooms_delta1", "loss", "mine"])
def test_the_best_checkpoint_is_the_best(processor, tmp_path, metric):
    expected = {"loss": False, "mine": True}.get(metric, greater_is_better(metric))
    for cls in (DenseTrainingArguments, TrainingArguments):
        args = cls(output_dir=str(tmp_path), metric_for_best_model=metric, **PLAIN)
        trainer = DenseTrainer(make_model(processor), args, data_collator=DenseCollator(processor))
        assert trainer.args.greater_is_better is expected, cls
    known = greater_is_better(metric)
    if known is not None:
        with pytest.raises(ValueError, match=f"`greater_is_better` must be {known}"):
            DenseTrainingArguments(
                output_dir=str(tmp_path), metric_for_best_model=metric, greater_is_better=not known, **PLAIN
            )


@pytest.mark.parametrize(
    ("metric", "mode"), [("mean_iou", {"mode": "max"}), ("abs_rel", None), ("loss", None), (None, None)]
)
def test_a_schedule_that_waits_for_a_plateau_knows_the_direction(tmp_path, metric, mode):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": metric, "eval_strategy": "steps"}
    args = DenseTrainingArguments(output_dir=str(tmp_path), eval_steps=1, **options, **PLAIN)
    assert (args.lr_scheduler_kwargs or None) == mode


def test_predictions_are_ids_of_the_labelled_positions(processor, tmp_path):
    samples, seen = make_samples(3), []
    trainer = make_trainer(
        tmp_path, processor, per_device_eval_batch_size=1,
        trainer_options={"compute_metrics": lambda prediction: seen.append(prediction) or {"mine": 1.0}},
    )  # fmt: skip
    rows = []
    for sample in samples:
        batch = trainer.data_collator([sample])
        labels = batch["labels"][0]
        ids = torch.full_like(labels, -100)
        followed = (labels[1:] != -100).nonzero()[:, 0]
        ids[followed] = trainer.model(**batch).logits[0, followed].argmax(dim=-1)
        rows.append(ids)
    heads = []
    handle = trainer.model.lm_head.register_forward_hook(lambda *call: heads.append(call[-1].shape))
    predicted = trainer.predict(samples)
    assert trainer.evaluate(samples)["eval_mine"] == 1.0
    handle.remove()
    assert {len(shape) for shape in heads} == {2} and max(shape[0] for shape in heads) < 60  # text alone
    for output in (predicted, seen[-1]):
        assert output.predictions.shape == output.label_ids.shape and output.predictions.dtype == np.int64
        for row, ids in zip(output.predictions, rows, strict=True):
            assert row[: len(ids)].tolist() == ids.tolist() and (row[len(ids) :] == -100).all()


def test_all_logits_are_for_who_asks_for_them(processor, tmp_path):
    shapes = []
    trainer = make_trainer(
        tmp_path, processor, per_device_eval_batch_size=2,
        trainer_options={
            "preprocess_logits_for_metrics": lambda logits, labels: shapes.append(logits.shape) or logits.argmax(-1)
        },
    )  # fmt: skip
    predictions = trainer.predict(make_samples(2)).predictions
    assert predictions.shape == shapes[0][:2] and shapes[0][2] == trainer.model.config.text_config.vocab_size


# ---- saving ----


class Killed(BaseException):
    """Stands for a kill: nothing of the project catches it."""


def kill_at(monkeypatch, moment: int | None) -> list:
    """Let the `moment`-th change of a name, or deletion, be the last. Gets an item for each as they come."""
    calls = []

    def killing(function):
        def killed(*args, **kwargs):
            if len(calls) == moment:
                raise Killed
            calls.append(function)
            return function(*args, **kwargs)

        return killed

    for owner, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, killing(getattr(owner, name)))
    return calls


def loaded(folder):
    """Which model a folder has, by its config and by its weights; `None` where it doesn't load."""
    try:
        model = DenseMLLMForConditionalGeneration.from_pretrained(folder)
    except (OSError, ValueError):
        return None
    return model.config.ntp_m_top_k, float(model.lm_head.weight.flatten()[0].detach())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["neither", "old", "new"])
def test_a_kill_while_saving_over_an_older_model_leaves_no_mixture(processor, tmp_path, monkeypatch, sharded):
    old, new = (make_model(processor, seed=seed, ntp_m_top_k=top_k) for seed, top_k in ((0, 8), (1, 5)))
    whole = {(model.config.ntp_m_top_k, float(model.lm_head.weight.flatten()[0].detach())) for model in (old, new)}
    if sharded == "new":
        monkeypatch.setattr(new, "save_pretrained", partial(type(new).save_pretrained, new, max_shard_size="100KB"))

    def save_over(folder, moment):
        old.save_pretrained(folder, max_shard_size="100KB" if sharded == "old" else "1GB")
        trainer = make_trainer(folder, processor, new)
        with monkeypatch.context() as patch:
            calls = kill_at(patch, moment)
            with nullcontext() if moment is None else pytest.raises(Killed):
                trainer.save_model()
        return len(calls)

    moments = save_over(tmp_path / "whole", None)
    assert loaded(tmp_path / "whole") == (5, float(new.lm_head.weight.flatten()[0].detach()))
    assert not {"unfinished", "_lock"} & {path.name for path in (tmp_path / "whole").iterdir()}
    results = []
    for moment in {*range(0, moments, 4), *range(moments - 4, moments)}:
        save_over(tmp_path / str(moment), moment)
        results.append(loaded(tmp_path / str(moment)))
    assert set(results) <= whole | {None} and None in results


@pytest.mark.slow
def test_a_kill_while_rotating_leaves_whole_checkpoints(processor, tmp_path, monkeypatch):
    for moment in (0, 1, 2, 4, 8, 1000):
        folder = tmp_path / str(moment)
        trainer = make_trainer(folder, processor, max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1)
        rotate = trainer._rotate_checkpoints
        with monkeypatch.context() as patch:

            def rotating(*args, patch=patch, moment=moment, trainer=trainer, rotate=rotate):
                if trainer.state.global_step == 2:
                    kill_at(patch, moment)
                rotate(*args)

            patch.setattr(trainer, "_rotate_checkpoints", rotating)
            try:
                trainer.train()
                break
            except Killed:
                pass
        for checkpoint in folder.glob("checkpoint-*"):
            assert {"model.safetensors", "config.json", "optimizer.pt", "trainer_state.json"} <= set(
                os.listdir(checkpoint)
            )
        assert (folder / "checkpoint-2").is_dir()
    assert moment == 1000 and [path.name for path in folder.iterdir()] == ["checkpoint-2"]


def test_two_trainings_do_not_share_a_folder(processor, tmp_path):
    other = make_trainer(tmp_path, processor)

    class Second(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.save_model(os.path.relpath(tmp_path))  # its own folder, by another name
            for call in (other.train, other.save_model):
                with pytest.raises(ValueError, match="`output_dir` .* is in use: another training writes into it"):
                    call()

    trainer = make_trainer(tmp_path, processor, save_strategy="steps", save_steps=1)
    trainer.add_callback(Second())
    trainer.train()
    other.train()  # one after the other
    other.save_model()
    assert loaded(tmp_path) is not None and not (tmp_path / "_lock").exists()
