"""A saved folder works alone: in a fresh process that cannot import the package, and over HTTP."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tiny import make_image, make_model, make_processor


LABELS = ["cat", "red ball", "sky"]
TASKS = ("segmentation", "depth")

# What the fresh process runs. The package is hidden from it, wherever pip has put it.
LOADER = r"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "densemllm" or name.startswith("densemllm."):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

source, out = sys.argv[1:3]
trust = {"trust_remote_code": True}
results = {"config": type(AutoConfig.from_pretrained(source, **trust)).__name__}
processor = AutoProcessor.from_pretrained(source, **trust)
results["image processor"] = type(AutoImageProcessor.from_pretrained(source, **trust)).__name__
text = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}],
    add_generation_prompt=True,
)
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
    model = auto.from_pretrained(source, **trust).eval()
    prediction = model.predict_dense("image.png", task=("segmentation", "depth"), labels=["cat", "red ball", "sky"])
    inputs = processor(images=["image.png"], text=[text], return_tensors="pt")
    results[auto.__name__] = {
        "segmentation": prediction.segmentation,
        "predicted_depth": prediction.predicted_depth,
        "generated": model.generate(**inputs, max_new_tokens=6, do_sample=False),
    }
pipe = pipeline("image-text-to-text", model=source, **trust)
messages = [{"role": "user", "content": [{"type": "image", "image": "image.png"},
                                         {"type": "text", "text": "what is it?"}]}]
answer = pipe(text=messages, max_new_tokens=6, do_sample=False, return_full_text=False)
results["pipeline"] = answer[0]["generated_text"]
dense = pipeline("dense-prediction", model=source, **trust)
results["dense"] = dense(["image.png"], task=("segmentation", "depth"), labels=["cat", "red ball", "sky"])[0]
del results["dense"]["depth"]
results["depth"] = pipeline("depth-estimation", model=source, **trust)("image.png")["predicted_depth"]
segments = pipeline("image-segmentation", model=source, **trust)("image.png")
results["segments"] = {row["label"]: torch.tensor(list(row["mask"].getdata())) for row in segments}
torch.save(results, out)
if len(sys.argv) > 3:
    model.save_pretrained(sys.argv[3])
    processor.save_pretrained(sys.argv[3])
"""


def load_in_a_fresh_process(source: str, folder: Path, save_to: Path | None = None, **environment) -> dict:
    (folder / "load.py").write_text(LOADER)
    make_image(30, 50).save(folder / "image.png")
    environment = {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", **environment}
    arguments = [sys.executable, "load.py", source, "results.pt"] + ([str(save_to)] if save_to else [])
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "custom code" not in done.stdout, "the process asked whether to trust code that it was told to trust"
    return torch.load(folder / "results.pt")


@pytest.fixture(scope="module")
def original():
    processor = make_processor()
    model = make_model(processor, id2label=dict(enumerate(LABELS)))
    image = make_image(30, 50)
    prediction = model.predict_dense(image, task=TASKS, labels=LABELS, processor=processor)
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answer = processor.post_process_image_text_to_text(generated[:, inputs["input_ids"].shape[1] :])[0]
    return model, processor, prediction, generated, answer


def check(results: dict, original) -> None:
    _, _, prediction, generated, answer = original
    assert results["config"] == "DenseMLLMConfig" and results["image processor"] == "DenseMLLMImageProcessor"
    for auto in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM"):
        assert torch.equal(results[auto]["segmentation"], prediction.segmentation)
        assert torch.equal(results[auto]["predicted_depth"], prediction.predicted_depth)
        assert torch.equal(results[auto]["generated"], generated)
    assert results["pipeline"] == answer
    assert torch.equal(results["dense"]["segmentation"], prediction.segmentation)
    assert torch.equal(results["dense"]["predicted_depth"], prediction.predicted_depth)
    torch.testing.assert_close(results["depth"], prediction.predicted_depth)
    assert set(results["segments"]) == {row["label"] for row in prediction.segments_info}
    for position, label in enumerate(LABELS):
        if label in results["segments"]:
            mask = results["segments"][label].view_as(prediction.segmentation) == 255
            assert torch.equal(mask, prediction.segmentation == position)


@pytest.mark.slow
def test_a_saved_folder_works_alone_and_saves_an_equally_complete_one(original, tmp_path):
    model, processor, *_ = original
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first)
    processor.save_pretrained(first)
    (tmp_path / "a").mkdir()
    check(load_in_a_fresh_process(str(first), tmp_path / "a", second, HF_HUB_OFFLINE="1"), original)
    files = {path.name: path.read_bytes() for path in first.iterdir() if path.suffix == ".py"}
    assert {path.name for path in second.iterdir()} == {path.name for path in first.iterdir()}
    assert all((second / name).read_bytes() == content for name, content in files.items())
    for name in ("config.json", "processor_config.json"):
        maps = [json.loads((folder / name).read_text())["auto_map"] for folder in (first, second)]
        assert maps[0] == maps[1]
    (tmp_path / "b").mkdir()
    check(load_in_a_fresh_process(str(second), tmp_path / "b", HF_HUB_OFFLINE="1"), original)


SAVER = (
    LOADER.split("import torch")[0]
    + r"""
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""
)


@pytest.mark.slow
def test_a_model_takes_along_all_the_code_that_its_config_names(original, tmp_path):
    """Also one that was loaded by a process that had no other class of the checkpoint."""
    original[0].save_pretrained(tmp_path / "first")
    done = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path / "first"), str(tmp_path / "second")],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for folder in (tmp_path / "first", tmp_path / "second"):
        config = json.loads((folder / "config.json").read_text())
        named = [*config["auto_map"].values(), *(row["impl"] for row in config["custom_pipelines"].values())]
        assert {f"{name.split('.')[0]}.py" for name in named} <= {path.name for path in folder.glob("*.py")}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as pushing and loading one model needs, kept in memory."""

    files: dict[str, bytes] = {}
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *args):
        pass

    def reply(self, body, status=200, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        data, path = self.body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            return self.reply({"url": f"http://{self.headers['Host']}/me/model", "name": "me/model", "id": "me/model"})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in path:
            named = json.loads(data)["files"]
            return self.reply(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in named]}
            )
        if "/commit/" in path:
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    Hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/me/model/commit/{self.commit}"
            return self.reply({"success": True, "commitOid": self.commit, "commitUrl": url})
        if path.startswith("/api/models/me/model/paths-info/"):
            return self.reply([])
        return self.reply({"error": f"no such call: {path}"}, 404)

    def do_GET(self):
        path = self.path.split("?")[0]
        info = {"id": "me/model", "sha": self.commit, "siblings": [{"rfilename": name} for name in Hub.files],
                "private": False, "tags": []}  # fmt: skip
        if path == "/api/whoami-v2":
            return self.reply({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        if path in ("/api/models/me/model", "/api/models/me/model/revision/main",
                    f"/api/models/me/model/revision/{self.commit}"):  # fmt: skip
            return self.reply(info)
        if path.startswith("/api/models/me/model/refs"):
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.commit}
            return self.reply({"branches": [head], "tags": [], "converts": [], "pullRequests": []})
        if path.startswith("/api/models/me/model/tree/") and path.count("/") > 6:  # there are no folders
            return self.reply({"error": "no such folder"}, 404, (("X-Error-Code", "EntryNotFound"),))
        if path.startswith("/api/models/me/model/tree/"):
            return self.reply([{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in Hub.files.items()])
        if path.startswith("/me/model/resolve/"):
            name = path.split("/", 5)[5]
            commit = (("X-Repo-Commit", self.commit),)
            if name not in Hub.files:
                return self.reply(b"", 404, (*commit, ("X-Error-Code", "EntryNotFound")))
            return self.reply(Hub.files[name], 200, (*commit, ("ETag", f'"{hash(Hub.files[name])}"')))
        return self.reply({"error": f"no such page: {path}"}, 404, (("X-Error-Code", "RepoNotFound"),))

    do_HEAD = do_GET


PUSHER = r"""
import sys
from densemllm import DenseMLLMForConditionalGeneration, DenseMLLMProcessor

folder = sys.argv[1]
DenseMLLMForConditionalGeneration.from_pretrained(folder).push_to_hub("me/model")
DenseMLLMProcessor.from_pretrained(folder).push_to_hub("me/model")
"""


@pytest.mark.slow
def test_pushed_and_loaded_over_http(original, tmp_path):
    model, processor, *_ = original
    model.save_pretrained(tmp_path / "folder")
    processor.save_pretrained(tmp_path / "folder")
    Hub.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_TOKEN": "hf_anything",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "no_proxy": "127.0.0.1",
        }
        pushed = subprocess.run(
            [sys.executable, "-c", PUSHER, str(tmp_path / "folder")],
            env={**os.environ, **environment, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert pushed.returncode == 0, pushed.stderr[-4000:]
        local = {path.name for path in (tmp_path / "folder").iterdir()}
        assert local <= set(Hub.files) | {"README.md"}
        (tmp_path / "away").mkdir()
        check(load_in_a_fresh_process("me/model", tmp_path / "away", **environment), original)
    finally:
        server.shutdown()
