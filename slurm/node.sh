#!/usr/bin/env bash
# One node's part of a job: slurm/train.sh and slurm/predict.sh start it on every node, with the arguments of accelerate
# launch.
set -euo pipefail
# shellcheck source=slurm/env.sh
. "$(dirname "$0")/env.sh"
copy=()
if [ "${CLS_STAGE:-0}" = 1 ] && [ -e "${CLS_DATA:-}" ]; then
    staged=$(stage "$CLS_DATA")
    copy=(--data.copy "$staged")
fi
if ! command -v accelerate >/dev/null; then
    echo "slurm/node.sh: $(hostname) has no accelerate: make a virtual environment (python3 -m venv .venv &&" \
        ". .venv/bin/activate && pip install -e .) in the checkout, or name yours with CLS_VENV" >&2
    exit 2
fi
exec accelerate launch --machine_rank "$SLURM_NODEID" "$@" "${copy[@]}"
