#!/usr/bin/env bash
# Runs on every node of a job: slurm/train.sh and slurm/predict.sh start it with the arguments of accelerate launch.
set -euo pipefail
# shellcheck source=slurm/env.sh
. "$(dirname "$0")/env.sh"
copy=()
if [ "${CLS_STAGE:-0}" = 1 ] && [ -e "${CLS_DATA:-}" ]; then
    staged=$(stage "$CLS_DATA")
    copy=(--data.copy "$staged")
fi
if ! command -v accelerate >/dev/null; then
    echo "slurm/node.sh: $(hostname) has no accelerate. Create a virtual environment in the checkout (python3 -m venv" \
        ".venv && . .venv/bin/activate && pip install -e .), or set CLS_VENV to yours" >&2
    exit 2
fi
exec accelerate launch --machine_rank "$SLURM_NODEID" "$@" "${copy[@]}"
