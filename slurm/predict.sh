#!/usr/bin/env bash
# Predict on a SLURM cluster. Arguments after the script go to `cls predict`:
#
#   sbatch slurm/predict.sh runs/mlp-head-42 photos/test
#   sbatch -p PARTITION --gpus-per-node=4 --cpus-per-task=16 slurm/predict.sh runs/mlp-head-42 photos/test
#
# One process per GPU on all nodes of the job. CLS_PROCESSES, CLS_HOME and the variables of slurm/env.sh work as in
# slurm/train.sh. If the job is preempted or a node fails, it is queued again and starts from the beginning.
#SBATCH --job-name=cls-predict
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
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

# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
machines "$root" "$@"
export CLS_DATA='' # node.sh copies only training data
# use this checkout's package, as train.py does, not an installed one
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
"${step[@]}" bash "$root/slurm/node.sh" "${launch[@]}" -m cls predict "$@"
