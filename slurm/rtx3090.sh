#!/usr/bin/env bash
# Nodes with RTX 3090 (24 GB); see slurm/train.sh for everything else.
#
#   sbatch slurm/rtx3090.sh mlp-head --data.path photos
#
# This script only requests resources: a partition named rtx3090 whose nodes have 4 GPUs and 16 cores. Change them here
# or in a copy (cp slurm/rtx3090.sh slurm/v100.sh), or override them with options of sbatch before the script's name.
#SBATCH --job-name=cls
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --partition=rtx3090
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=rtx3090:4
#SBATCH --cpus-per-task=16
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

# --- the checkout: the same lines in every script, so that a copy works under any name and in any directory ---
# SLURM runs a copy called slurm_script. The job's Command= is the original path and the arguments; both may contain
# spaces. A member of an array is addressed as ARRAY_INDEX: the number alone may mean the whole array.
job=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:?is not set: submit this script with sbatch, or run it inside salloc}}
job+=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
for _ in {1..6}; do if shown=$(scontrol show job "$job"); then break; else sleep 10; fi; done # a busy controller
script=$(realpath -s "$0")
if [ "${script##*/}" = slurm_script ]; then
    script=$(sed -n 's|^ *Command=||p' <<<"$shown" | sed -n 1p)
    case $script in /* | '(null)') ;; *) script=$SLURM_SUBMIT_DIR/$script ;; esac
    while [ -n "$script" ] && [ ! -f "$script" ]; do
        case $script in *' '*) script=${script% *} ;; *) script='' ;; esac
    done
fi
root=${CLS_HOME:+$(realpath -m "$CLS_HOME")}
for at in "$(realpath -m "${script:-/}")" "$script" "${SLURM_SUBMIT_DIR:-}/."; do
    while [ -z "$root" ] && [ -n "$at" ]; do
        at=${at%/*}
        if [ -f "$at/train.py" ] && [ -f "$at/slurm/env.sh" ]; then root=$at; fi
    done
done
if [ ! -f "$root/train.py" ] || [ ! -f "$root/slurm/env.sh" ]; then
    at="or above ${script:-$0} or ${SLURM_SUBMIT_DIR:-$PWD}"
    echo "slurm: no checkout of cls (train.py, slurm/env.sh) in ${CLS_HOME:+CLS_HOME=}${CLS_HOME:-$at}:" \
        "export CLS_HOME=DIRECTORY, the one with train.py, and submit again" >&2
    exit 2
fi
# ---

export CLS_SCRIPT=$script
# exec: SLURM signals this process before the time limit, and train.sh handles the signal
exec bash "$root/slurm/train.sh" "$@"
