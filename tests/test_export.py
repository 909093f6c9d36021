"""The dense path as a file: what it computes is what `predict_dense` gives."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from densemllm import DenseMLLMForConditionalGeneration, export
from densemllm.export import columns_of_labels, export_dense
from repository import require
from tiny import ID2LABEL, LLAMA, YOUTU, assert_maps_agree, make_image, make_model, make_processor


TASKS = ("segmentation", "depth")
HEIGHT, WIDTH = 24, 40
IMAGES = [make_image(HEIGHT, WIDTH, seed) for seed in range(3)]
BATCH = np.stack([np.asarray(image) for image in IMAGES])
OTHERS = ["a lamp", "sky", "cup", "table"]


def make(**kwargs):
    processor = make_processor()
    model = make_model(processor, **{"id2label": ID2LABEL, **kwargs})
    model.set_processor(processor)
    return model


@pytest.fixture(scope="module")
def model():
    """A layer of each kind: a trace takes its time for each of them."""
    return make(
        text={**YOUTU, "num_hidden_layers": 1}, vision={"num_hidden_layers": 1, "fullatt_block_indexes": []}
    )  # fmt: skip


def assert_predicts(outputs, model, images, labels, **options) -> None:
    logits, segmentation, depth = (torch.as_tensor(np.asarray(values)) for values in outputs)
    for place, image in enumerate(images):
        expected = model.predict_dense(image, TASKS, labels=labels, return_logits=True, **options)
        torch.testing.assert_close(logits[place], expected.logits["segmentation"], rtol=1e-4, atol=1e-4)
        keys = torch.tensor(list(labels) if isinstance(labels, dict) else range(len(labels)))
        assert_maps_agree(keys[segmentation[place]], expected.segmentation, share=0.99)
        assert_maps_agree(depth[place], expected.predicted_depth, share=0.99)


VARIANTS = {
    "windows": {"text": {**YOUTU, "num_hidden_layers": 1}},
    "table, both ways": {
        "text": {**LLAMA, "num_hidden_layers": 1}, "vision_attention": "bidirectional",
        "vision": {
            "position_embedding": "table", "window_size": None, "num_hidden_layers": 1, "fullatt_block_indexes": [0],
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_program_is_predict_dense(kind, tmp_path):
    model = make(**VARIANTS[kind])
    labels = {7: "wall", 3: "red ball"}
    out = export_dense(model, tmp_path / "model.pt2", HEIGHT, WIDTH, labels, depth_range="camera")
    files = {export.METADATA: ""}
    run = torch.export.load(out, extra_files=files).module()
    said = json.loads(files[export.METADATA])
    assert (said["labels"], said["label_keys"]) == (["wall", "red ball"], [7, 3])
    assert (said["height"], said["width"], said["num_depth_bins"]) == (HEIGHT, WIDTH, 16)
    assert said["depth_range"]["name"] == "camera" and said["depth_range"]["max_depth"] == 4.0
    np.testing.assert_allclose(said["label_columns"], columns_of_labels(model, labels))
    assert all(weight.requires_grad for weight in model.parameters())  # as they were
    for images in (IMAGES, IMAGES[1:2]):
        batch = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        for names in (labels, OTHERS, ["cat"]):
            with torch.no_grad():  # torch 2.9 loads weights that require gradients
                outputs = run(batch, torch.from_numpy(columns_of_labels(model, names)))
            assert_predicts(outputs, model, images, names, depth_range="camera")


def test_an_onnx_file_is_predict_dense(model, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = export_dense(model, tmp_path / "model.onnx", HEIGHT, WIDTH)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(str(out))
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["labels"]) == list(ID2LABEL.values()) and said["height"] == str(HEIGHT)
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch_size", HEIGHT, WIDTH, 3]
    assert [output.name for output in session.get_outputs()] == list(export.OUTPUTS)
    for images in (IMAGES, IMAGES[1:2]):
        batch = BATCH[[IMAGES.index(image) for image in images]]
        assert_predicts(session.run(None, {"image": batch}), model, images, ID2LABEL)
        for names in (OTHERS, ["cat"]):  # more than it was made with, and one
            inputs = {"image": batch, "label_columns": columns_of_labels(model, names)}
            assert_predicts(session.run(None, inputs), model, images, names)


@pytest.mark.slow
def test_large_weights_stand_beside_an_onnx_file(model, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "MAX_PROTOBUF", 1000)
    out = export_dense(model, tmp_path / "new" / "model.onnx", 8, 16, ["wall"])
    assert {path.name for path in out.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    image = make_image(8, 16)
    outputs = runtime.InferenceSession(str(out)).run(None, {"image": np.asarray(image)[None]})
    assert_predicts(outputs, model, [image], ["wall"])
    with pytest.raises(ValueError, match=r"model\.onnx is there already"):
        export_dense(model, out, 8, 16, ["wall"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"out": "model.pt"}, ValueError, r"`out` must end in .*\.onnx.*got 'model\.pt'"),
        ({"height": 20}, ValueError, "`height` must be a multiple of 8 pixels.*got 20; the nearest are 16 and 24"),
        ({"width": 3}, ValueError, "the nearest is 8"),
        ({"width": 0}, ValueError, "`width`"),
        ({"height": "tall"}, TypeError, "`height`"),
        ({"height": 800, "width": 800}, ValueError, "40000 patches of 4 pixels; .* takes at most 1024"),
        ({"labels": []}, ValueError, "`labels`"),
        ({"labels": "wall"}, TypeError, "`labels`"),
        ({"labels": ["<OTHERS>"]}, ValueError, "`labels` must name a class other than <OTHERS>"),
        ({"depth_range": "moon"}, ValueError, "`depth_range`.*'moon'"),
        ({"checkpoint": 3}, TypeError, "`checkpoint` must be a path, a name or a model, got int"),
        ({"checkpoint": "nowhere/at-all"}, ValueError, "nowhere/at-all can't be loaded"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, tmp_path, monkeypatch, options, error, match):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("was traced"))
    monkeypatch.chdir(tmp_path)
    arguments = {"checkpoint": model, "out": "model.pt2", "height": HEIGHT, "width": WIDTH}
    with pytest.raises(error, match=match):
        export_dense(**{**arguments, **options})
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"`pip install densemllm\[onnx\]`"):
        export_dense("nowhere/at-all", tmp_path / "model.onnx", HEIGHT, WIDTH)


def test_one_number_normalises_all_channels():
    processor = make_processor().image_processor
    processor.image_mean, processor.image_std = 0.25, 0.5
    gain, offset = export.pixel_scale(processor)
    pixels = np.asarray(make_image(8, 8))
    expected = processor(PIL.Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    own = torch.from_numpy(pixels.copy()) * gain + offset
    torch.testing.assert_close(own.flatten().sort().values, expected.flatten().sort().values)


def test_models_that_cannot_be_exported_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be in float32, got torch.bfloat16"):
        export_dense(make().bfloat16(), tmp_path / "model.pt2", HEIGHT, WIDTH)
    model = make()
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention'; accepted are"):
        export_dense(model, tmp_path / "model.pt2", HEIGHT, WIDTH)
    model = make()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="a Sequential as its output embedding"):
        export_dense(model, tmp_path / "model.pt2", HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="`config.id2label`"):
        columns_of_labels(make(id2label=None))


def test_the_command(model, tmp_path, capsys, monkeypatch):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "columns.npy"
    model.save_pretrained(checkpoint)
    model.get_processor().save_pretrained(checkpoint)
    assert export.main([str(checkpoint), "--labels", "cat, lamp", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    np.testing.assert_allclose(np.load(out), columns_of_labels(model, ["cat", "lamp"]))
    for arguments, said in (
        (["--out", str(out)], "is there already"),
        (["--out", str(tmp_path / "model.onnx"), "--height", "24"], "--width is needed"),
        (["--out", str(tmp_path / "more.npy"), "--height", "24"], "--height says nothing"),
        (["--out", str(tmp_path / "model.onnx"), "--height", "x"], "invalid int value"),
    ):
        assert export.main([str(checkpoint), *arguments]) == 2
        assert said in capsys.readouterr().err
    given = []
    monkeypatch.setattr(export, "export_dense", lambda *arguments: given.append(arguments) or out)
    words = ["--height", "16", "--width", "24", "--depth_range", "camera", "--out", "model.pt2", "--overwrite"]
    assert export.main([str(checkpoint), *words]) == 0
    assert given == [(str(checkpoint), Path("model.pt2"), 16, 24, None, "camera", True)]


@pytest.mark.slow
def test_the_page_about_it_runs(tmp_path, monkeypatch, capsys):
    """docs/export.md: its commands, then its Python in one process; on the shipped checkpoint in float32."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    page, photo = require("docs/export.md").read_text(), require("examples/rooms/room.jpg")
    (tmp_path / "checkpoints").symlink_to(require("checkpoints"))
    shutil.copy(photo, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in re.findall(r"(?m)^densemllm export (.+)$", page)]
    program = [*commands[0][:-1], "model.pt2"]
    assert [export.main(command) for command in (*commands, program)] == [0] * 3
    capsys.readouterr()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
        if "label_columns" not in block:
            onnx_outputs = [scope[name] for name in export.OUTPUTS]
            said = capsys.readouterr().out
        elif "session" in block:
            assert set(np.unique(scope["segmentation"])) <= {0, 1, 2}
    model = DenseMLLMForConditionalGeneration.from_pretrained("checkpoints/densemllm-rooms", dtype=torch.float32)
    program_outputs = [scope[name] for name in export.OUTPUTS]
    for outputs in (onnx_outputs, program_outputs):
        assert_predicts(outputs, model.eval(), [scope["image"]], model.config.label_names)
    assert re.search(r"floor: \d+\.\d% of the image, \d\.\d\d m away", said)
