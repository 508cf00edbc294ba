#!/usr/bin/env bash
# Nodes with RTX 3090 (24 GB); see slurm/train.sh for everything else.
#
#   sbatch slurm/rtx3090.sh mlp-head --data.path photos
#
# Only resources stand here, for a partition named rtx3090 of nodes with 4 GPUs and 16 cores; change them to your cluster's,
# or overrule them on sbatch's command line, before the script.
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

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
for _ in 1 2 3 4 5 6; do if shown=$(scontrol show job "$job"); then break; else sleep 10; fi; done # a busy controller
root=$(sed -n 's|^ *Command=||p' <<<"$shown") && root=${root%%/slurm/rtx3090.sh*}
export CLS_SCRIPT=$root/slurm/rtx3090.sh
# exec: the signal before the time limit goes to this process, and train.sh waits for it
exec "$root/slurm/train.sh" "$@"
