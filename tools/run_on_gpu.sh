#!/usr/bin/env bash
# All that a GPU is needed for, in one command: the tests marked `cuda`, then one table of figures with the card's name.
#
#   tools/run_on_gpu.sh          on a machine with a GPU, in an environment with `pip install -e ".[test]"`
#   tools/run_on_gpu.sh --cpu    the same scripts at small sizes on a CPU: whether they themselves run
#
# Nothing is fetched: the checkpoint is that of the repository, and the tests make their own.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python}

if [ "${1:-}" = "--cpu" ]; then
  export DENSEMLLM_TEST_DEVICE=cpu
  "$python" -m pytest -q tests/test_cuda.py
  exec "$python" benchmarks/on_gpu.py --device cpu --quick
fi
"$python" -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'there is no GPU that torch can use; --cpu tries the scripts')"
"$python" -m pytest -q -m cuda tests
"$python" benchmarks/on_gpu.py
