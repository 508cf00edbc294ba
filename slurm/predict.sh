#!/usr/bin/env bash
# Predict on a SLURM cluster; whatever follows goes to `cls predict`:
#
#   sbatch slurm/predict.sh runs/mlp-head-42 photos/test
#
#SBATCH --job-name=cls-predict
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
set -euo pipefail

for _ in 1 2 3 4 5 6; do if shown=$(scontrol show job "$SLURM_JOB_ID"); then break; else sleep 10; fi; done # a busy controller
root=$(sed -n 's|^ *Command=||p' <<<"$shown") && root=${root%%/slurm/predict.sh*}
# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL cls predict "$@"
