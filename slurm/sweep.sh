#!/usr/bin/env bash
# A job array with one run for each line of a file; a line is what follows train.py (recipe and fields, quoted as in a
# shell; # starts a comment), and what follows the file goes to all of them:
#
#   sbatch --array=1-4 slurm/sweep.sh variants.txt --data.path photos
#
# The runs are FOLDER/001, FOLDER/002, …, FOLDER being runs/sweep-JOBID below the directory of the sbatch, or CLS_SWEEP:
# name the old one there and lines that are done are not run again. A line that names its own --out keeps it
# (`cls sweep NAME --slurm FILE` writes such lines). Each end of a run rewrites FOLDER/table.md and .csv
# (`cls sweep FOLDER`). All else is slurm/train.sh's: each member is requeued on its own.
#SBATCH --job-name=cls
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

number=${SLURM_ARRAY_TASK_ID:?submit with sbatch --array=1-LINES slurm/sweep.sh FILE}
for _ in 1 2 3 4 5 6; do if shown=$(scontrol show job "${SLURM_ARRAY_JOB_ID}_$number"); then break; else sleep 10; fi; done # a busy controller
root=$(sed -n 's|^ *Command=||p' <<<"$shown") && root=${root%%/slurm/sweep.sh*}
file=${1:?name the file with one variant per line}
shift
variants=$(grep -v '^[[:space:]]*\(#\|$\)' "$file") || true
line=$(sed -n "${number}p" <<<"$variants")
if [ -z "$line" ]; then
    echo "slurm/sweep.sh: $file has $(grep -c . <<<"$variants") variants, none with number $number" >&2
    exit 2
fi
# Quotes as in a shell, but nothing is executed; the last word keeps empty ones before it.
if ! words=$(xargs -n 1 printf '%s\n' <<<"$line end"); then
    echo "slurm/sweep.sh: $file: variant $number cannot be read as words: $line" >&2
    exit 2
fi
mapfile -t words <<<"$words"
unset 'words[-1]'
export CLS_SWEEP=${CLS_SWEEP:-runs/sweep-$SLURM_ARRAY_JOB_ID}
case " ${words[*]} " in
*" --out "* | *" --out="*) ;;
*) set -- "$@" --out "$CLS_SWEEP/$(printf %03d "$number")" ;;
esac
exec "$root/slurm/train.sh" "${words[@]}" "$@"
