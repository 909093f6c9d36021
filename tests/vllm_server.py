"""A server on loopback that answers as vLLM 0.32 does (`/v1/models`, `/pooling` in bytes, `/v1/chat/completions`), by
a model of transformers: for tests without vLLM. tools/check_vllm.sh asks a real one."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from densemllm import DenseMLLMForConditionalGeneration


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, None))
        if self.path == "/v1/models":
            self.answer_json({"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})
        else:
            self.answer_json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, {**body, "headers": dict(self.headers)}))
        with server.lock:  # as of a model that computes one batch at a time
            if server.faults:
                server.faults.pop(0)(self)
            elif body.get("model") not in server.models:
                message = f"The model `{body.get('model')}` does not exist."
                self.answer_json({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
            elif self.path == "/pooling" and server.pools:
                self.pool(body)
            elif self.path == "/v1/chat/completions" and not server.pools:
                self.chat(body)
            else:
                self.answer_json({"detail": "Not Found"}, 404)

    def answer_json(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(json.dumps(values).encode(), status, {"content-type": "application/json", **(headers or {})})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def inputs(self, body: dict, generates: bool) -> Any:
        """A request's prompt and image as vLLM's Transformers backend makes them: by the checkpoint's processor."""
        return self.server.processor.apply_chat_template(
            body["messages"], add_generation_prompt=body.get("add_generation_prompt", generates), tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip

    @torch.no_grad()
    def pool(self, body: dict) -> None:
        asked = {name: body.get(name) for name in ("task", "use_activation", "encoding_format", "embed_dtype")}
        assert asked == {
            "task": "token_embed", "use_activation": False, "encoding_format": "bytes", "embed_dtype": "float32",
        }  # fmt: skip
        states = self.server.model.model(**self.inputs(body, generates=False)).last_hidden_state[0]
        content = states.float().numpy().astype("<f4").tobytes()
        row = {
            "index": 0, "embed_dtype": "float32", "endianness": "little", "start": 0, "end": len(content),
            "shape": list(states.shape),
        }  # fmt: skip
        metadata = {"id": "pooling-0", "created": 0, "model": body["model"], "data": [row], "usage": {}}
        self.answer(content, headers={"metadata": json.dumps(metadata), "content-type": "application/octet-stream"})

    @torch.no_grad()
    def chat(self, body: dict) -> None:
        inputs = self.inputs(body, generates=True)
        tokenizer = self.server.processor.tokenizer
        output = self.server.model.generate(
            **inputs,
            max_new_tokens=body["max_completion_tokens"],
            do_sample=body["temperature"] > 0,
            stop_strings=body.get("stop"),
            tokenizer=tokenizer,
            eos_token_id=[tokenizer.eos_token_id, *body.get("stop_token_ids", [])],
            num_return_sequences=body.get("n", 1),
        )
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=body["skip_special_tokens"]
        )
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ]
        self.answer_json({"id": "chatcmpl-0", "object": "chat.completion", "choices": choices})


class Server(ThreadingHTTPServer):
    """Attributes: `seen`, the paths and bodies that were asked for; `faults`, what is done instead of the next
    answers; `models`, the names that it lists; `pools`, as with `--runner pooling`."""

    daemon_threads = True

    def __init__(self, model: DenseMLLMForConditionalGeneration, pools: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.processor, self.pools = model, model.get_processor(), pools
        self.models, self.seen, self.faults, self.lock = ["served"], [], [], threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has hung up


@contextlib.contextmanager
def serving(model: DenseMLLMForConditionalGeneration, pools: bool) -> Iterator[Server]:
    """A server for as long as this lasts."""
    server = Server(model, pools)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
