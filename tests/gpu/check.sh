#!/usr/bin/env bash
# Try cls on one GPU in eight minutes: bash tests/gpu/check.sh [OUT]; the table is OUT/table.md.
# WHEELS=FOLDER: wheels of what this machine lacks (wheels.txt), installed below OUT first.
# SMALL=1: tiny networks and fewer runs, for a machine without a GPU.
set -uo pipefail
out=$(realpath -m "${1:-$(mktemp -d -t cls-check-XXXX)}")
wheels=${WHEELS:+$(realpath "$WHEELS")}
if [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
    echo "$out is not empty: name another place"
    exit 2
fi
mkdir -p "$out"
cd "$(dirname "$0")/../.." || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} WANDB_MODE=disabled HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-cache-dir --target "$out/site" "$wheels"/*.whl || exit
    export PYTHONPATH=$PYTHONPATH:$out/site
fi
export CLS_CACHE=$out/cache # speeds that are measured while several runs share the card are kept for no other run
# real runs beside each other, then measurements that have the machine to themselves
python3 -m tests.gpu.runs "$out" "${SECONDS_RUNS:-150}"
python3 -m tests.gpu.measure "$out" "${SECONDS_MEASURE:-300}"
python3 -m tests.gpu.table "$out"
