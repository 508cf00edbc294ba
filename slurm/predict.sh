#!/usr/bin/env bash
# Predict on a SLURM cluster; whatever follows goes to `cls predict`:
#
#   sbatch slurm/predict.sh runs/mlp-head-42 photos/test
#   sbatch -p PARTITION --gpus-per-node=4 --cpus-per-task=16 slurm/predict.sh runs/mlp-head-42 photos/test
#
# One process per GPU, on all nodes of the job; CLS_PROCESSES and the settings of slurm/env.sh are as for slurm/train.sh.
# A job that is preempted or whose node fails is queued again and starts anew.
#SBATCH --job-name=cls-predict
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
set -euo pipefail

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
for _ in 1 2 3 4 5 6; do if shown=$(scontrol show job "$job"); then break; else sleep 10; fi; done # a busy controller
root=$(sed -n 's|^ *Command=||p' <<<"$shown") && root=${root%%/slurm/predict.sh*}
# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
machines "$root" "$@"
export CLS_DATA='' # node.sh stages what a run trains on
# the checkout's own package, as train.py has it, whichever is installed
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL \
    "$root/slurm/node.sh" "${launch[@]}" -m cls predict "$@"
