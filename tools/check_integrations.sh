#!/usr/bin/env bash
# The tests of what other engines do with this package, each in an environment of its own, before a release: lmms-eval
# runs its own evaluator with our model and tasks, Ray Data maps a folder with two copies of the model.
#
#   tools/check_integrations.sh [lmms] [ray]        both where none is named
#
# `.ci/run` leaves them out: they install half a dozen gigabytes of other people's requirements.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

environment() {
  python3 -m venv "$work/$1"
  "$work/$1/bin/pip" install --quiet -c constraints/tested.txt -e ".[test]" "${@:2}"
}

[ $# -gt 0 ] || set -- lmms ray
for one in "$@"; do
  case $one in
    lmms)
      environment lmms ./integrations/lmms_eval
      # Its requirement torchvision may come built for another torch than the pinned one; nothing here needs it.
      "$work/lmms/bin/pip" uninstall --quiet --yes torchvision
      "$work/lmms/bin/pytest" -q tests/test_lmms_eval.py
      ;;
    ray)
      environment ray "ray[data]"
      "$work/ray/bin/pytest" -q tests/test_ray.py
      ;;
    *) echo "unknown: $one; there are lmms and ray" >&2 && exit 2 ;;
  esac
done
