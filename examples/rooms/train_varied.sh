#!/usr/bin/env bash
# The training of checkpoints/densemllm-rooms with varied rooms, in pieces of at most PIECE seconds (two hours where left
# out) on CORES cores (2), from the repository's root:
#
#   bash examples/rooms/train_varied.sh data       # renders; again until it says that all is there
#   bash examples/rooms/train_varied.sh train      # trains; again, goes on at the last checkpoint, until max_steps
#   bash examples/rooms/train_varied.sh measure    # on the test rooms
#
# What stands after the word goes to train_hf.py or evaluate_densemllm.py: --max_steps 3000
set -euo pipefail
word=${1:-}
shift || true
cores=${CORES:-2}
piece=${PIECE:-7200}
python=${PYTHON:-python}
out=out/rooms # as train_varied.yaml has it
export OMP_NUM_THREADS=1

# `timeout` ends with 124 where the time is up: then there is more to do, and nothing is wrong.
run() {
    local status=0
    timeout --signal=TERM --kill-after=60 "$piece" "$@" || status=$?
    if [ "$status" = 124 ]; then
        echo "the time is up: the same command goes on"
        exit 0
    fi
    return "$status"
}

case "$word" in
data)
    end=$((SECONDS + piece))
    render() {
        piece=$((end - SECONDS))
        [ "$piece" -gt 0 ] || { echo "the time is up: the same command goes on"; exit 0; }
        run "$python" examples/rooms/render.py --workers "$cores" "$@"
    }
    # The shards that are there stay. Training rooms come before what is measured on.
    render --split train --rooms "${VARIED_ROOMS:-1200}" --variety 1 --output_dir "$out/varied"
    render --split train --rooms "${PLAIN_ROOMS:-800}" --output_dir "$out/plain"
    render --split test --rooms "${HELD_ROOMS:-200}" --output_dir "$out/data"
    echo "all rooms are there"
    ;;
train)
    resume=()
    if compgen -G "$out/varied_trained/checkpoint-*" > /dev/null; then resume=(--resume_from_checkpoint true); fi
    run torchrun --nproc_per_node "$cores" train_hf.py examples/rooms/train_varied.yaml \
        --output_dir "$out/varied_trained" "${resume[@]}" "$@"
    ;;
measure)
    run torchrun --nproc_per_node "$cores" evaluate_densemllm.py --model "$out/varied_trained" --data "$out/data" \
        --split test --depth_scale 0.002 --task segmentation depth referring class_list panoptic \
        --output_dir "$out/evaluation" "$@"
    ;;
*)
    echo "usage: train_varied.sh data|train|measure [--argument value ...]" >&2
    exit 2
    ;;
esac
