#!/usr/bin/env bash
# A job array with one run per line of a file. A line holds arguments of train.py (recipe and fields, quoted as in a
# shell; # starts a comment). Arguments after the file go to all runs:
#
#   sbatch --array=1-4 slurm/sweep.sh variants.txt --data.path photos
#
# The run directories are FOLDER/001, FOLDER/002, …. FOLDER is CLS_SWEEP; default: runs/sweep-JOBID in the directory
# where you ran sbatch. Set CLS_SWEEP to an earlier FOLDER to skip its finished runs. A line with its own --out keeps it
# (`cls sweep NAME --slurm FILE` writes such lines). Each run that ends updates FOLDER/table.md and table.csv
# (`cls sweep FOLDER`). Everything else is as in slurm/train.sh; each run is queued again separately.
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

number=${SLURM_ARRAY_TASK_ID:?is not set: submit with sbatch --array=1-LINES slurm/sweep.sh FILE}

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

file=${1:?give the file with one variant per line}
shift
fail() {
    echo "slurm/sweep.sh: $file$1" >&2
    exit 2
}
# words_of LINE: set words, split as in a shell, without executing anything; status 1 for an unclosed quote or a
# backslash at the end.
words_of() {
    local line=$1 word='' quote='' begun='' at c
    words=()
    for ((at = 0; at < ${#line}; at++)); do
        c=${line:at:1}
        case $quote$c in
        "''" | '""') quote='' ;;
        "'"?) word+=$c ;;
        '"'\\ | \\)
            at=$((at + 1))
            if [ "$at" -ge "${#line}" ]; then return 1; fi
            c=${line:at:1} begun=yes
            # inside double quotes a backslash escapes only these
            case $quote$c in '"'[!\"\\\$\`]) word+=\\ ;; esac
            word+=$c
            ;;
        '"'?) word+=$c ;;
        "'" | '"') quote=$c begun=yes ;;
        [[:space:]])
            if [ -n "$begun" ]; then words+=("$word"); fi
            word='' begun=''
            ;;
        *)
            if [ "$c" = '#' ] && [ -z "$begun" ]; then break; fi
            word+=$c begun=yes
            ;;
        esac
    done
    if [ -n "$begun" ]; then words+=("$word"); fi
    [ -z "$quote" ]
}
is_out() { case $1 in --out | --out=*) true ;; *) false ;; esac; }

if [ ! -f "$file" ] || [ ! -r "$file" ]; then fail " is not a readable file in $PWD"; fi
if ! cmp -s "$file" <(tr -d '\0' <"$file"); then
    fail " contains zero bytes (UTF-16, as some Windows programs write?): save it as UTF-8"
fi
# Windows programs write three bytes before the first line (BOM) and CR at the end of each line
variants=$(LC_ALL=C sed '1s/^\xef\xbb\xbf//; s/\r$//' "$file" | LC_ALL=C grep -av '^[[:space:]]*\(#\|$\)') || true
line=$(sed -n "${number}p" <<<"$variants")
[ -n "$line" ] || fail " has $(grep -c . <<<"$variants") variants; there is no number $number"
words_of "$line" || fail ": variant $number has an unclosed quote or ends in a backslash: $line"
own=''
for word in "${words[@]}"; do if is_out "$word"; then own=yes; fi; done
for word in "$@"; do
    if is_out "$word"; then fail ": --out would give all variants the same run directory: set CLS_SWEEP=FOLDER"; fi
done
export CLS_SWEEP=${CLS_SWEEP:-runs/sweep-$SLURM_ARRAY_JOB_ID} CLS_SCRIPT=$root/slurm/train.sh
[ -n "$own" ] || set -- "$@" --out "$CLS_SWEEP/$(printf %03d "$number")"
exec bash "$root/slurm/train.sh" "${words[@]}" "$@"
