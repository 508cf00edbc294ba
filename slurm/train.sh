#!/usr/bin/env bash
# Train on a SLURM cluster; whatever follows goes to train.py:
#
#   sbatch slurm/train.sh mlp-head --data.path photos
#   sbatch -p PARTITION --nodes=2 --gpus-per-node=4 --cpus-per-task=16 slurm/train.sh mlp-head --data.path photos
#
# The run directory is --out, or runs/RECIPE-JOBID below the directory of the sbatch. Before the time limit, and when it
# is preempted, the run saves, leaves, is queued again and goes on; after any other end (done, an error, scancel) it is
# not. Every #SBATCH line may be overruled on sbatch's command line or by SBATCH_… variables. Settings (environment):
#   CLS_PROCESSES    processes per node; else one per GPU, and one where there is none
#   CLS_ACCELERATE   accelerate_configs/NAME.yaml: ddp, fsdp, …; else what fits the processes
#   CLS_RESTARTS     how often the job may be queued again (100)
#   and those of slurm/env.sh: caches, virtual environment, offline, staging of data
#SBATCH --job-name=cls
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
unset SLURM_TIME_FORMAT # scontrol would print times that date cannot read

# USR1 comes before the time limit and at a preemption, TERM with scancel and, if saving took too long, at the limit.
asked=''
trap 'asked=${asked:-USR1}' USR1
trap 'if [ "$(date +%s)" -ge "$((${SLURM_JOB_END_TIME:-0} - 5))" ] && [ -n "$asked" ]; then :; else asked=TERM; fi' TERM

# SLURM runs a copy of this script from its spool; the job knows where the original is. A member of an array goes by its
# own name: the number alone may mean the whole array.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
for _ in 1 2 3 4 5 6; do if shown=$(scontrol show job "$job"); then break; else sleep 10; fi; done # a busy controller
case $0 in
*/slurm/*.sh) root=$(realpath "${0%/slurm/*}") ;;
*) root=$(sed -n 's|^ *Command=||p' <<<"$shown") && root=${root%%/slurm/train.sh*} ;;
esac
if [ ! -f "$root/train.py" ]; then
    echo "slurm/train.sh: no train.py in '$root': submit with sbatch PATH/slurm/train.sh, not from a pipe" >&2
    exit 2
fi

lives=${SLURM_RESTART_COUNT:-0} most=${CLS_RESTARTS:-100}
recipe=digits out='' data=''
case ${1:-} in -* | "") ;; *) recipe=$1 ;; esac
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --out) out=${arguments[i + 1]:-} ;;
    --out=*) out=${arguments[i]#--out=} ;;
    --data.path) data=${arguments[i + 1]:-} ;;
    --data.path=*) data=${arguments[i]#--data.path=} ;;
    esac
done
if [ -z "$out" ]; then
    out=runs/$recipe-$job
    arguments+=(--out "$out")
fi

outcome() { sed -n 's/.*"outcome": "\([a-z_]*\)".*/\1/p' "$out/exit.json" 2>/dev/null || true; }
written() { stat -c '%i %Y' "$out/exit.json" 2>/dev/null || true; }
goes_on() {
    local script=${CLS_SCRIPT:-$root/slurm/train.sh}
    echo "slurm/train.sh: $1. The same run goes on with: sbatch ${script@Q} ${arguments[*]@Q}" >&2
}

if [ "$lives" -gt 0 ] && [ "$(outcome)" = 'done' ]; then
    echo "slurm/train.sh: $out is finished" # some versions of SLURM start a finished job again
    exit 0
fi
if [ "$lives" -gt "$most" ]; then
    goes_on "queued again $lives times, and CLS_RESTARTS is $most"
    exit 1
fi

# --- the machines ---

# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
machines "$root" "$@"
moment() { # moment Start: unix time of StartTime; nothing where it is not known
    local text
    text=$(sed -n "s/.*\b$1Time=\([0-9][^ ]*\).*/\1/p" <<<"$shown" | sed -n 1p)
    [ -z "$text" ] || date -d "$text" +%s
}
SLURM_JOB_END_TIME=$(moment End) SLURM_JOB_START_TIME=$(moment Start)
CLS_SUBMIT_TIME=$(if [ "$lives" -gt 0 ]; then moment Submit; else moment Eligible; fi) # a requeue submits again
export SLURM_JOB_END_TIME SLURM_JOB_START_TIME CLS_SUBMIT_TIME
# The launcher kills what has not left 30 s after the first process did: a checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
printf 'slurm/train.sh: job %s, life %s, %s: %s node(s) x %s process(es), %s.yaml, first node %s:%s -> %s\n' \
    "$job" "$lives" "$SLURM_JOB_NODELIST" "$SLURM_NNODES" "$per_node" "$config" "$first" "$port" "$out"

# --- the run, and its end ---

before=$(written)
# srun inherits neither the CPUs per task nor, with --export=NONE, any variable
export CLS_DATA=${data/#\~/$HOME}
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL --wait=600 --kill-on-bad-exit=0 \
    "$root/slurm/node.sh" "${launch[@]}" "$root/train.py" "${arguments[@]}" &
child=$! told=''
while kill -0 "$child" 2>/dev/null; do
    # again and again: at its start the run clears the request of an earlier life away
    if [ "$asked" = USR1 ] && [ -f "$out/config.yaml" ]; then touch "$out/stop"; fi
    # at once: after scancel there are KillWait seconds left
    if [ "$asked" = TERM ] && [ -z "$told" ]; then
        told=yes
        goes_on "asked to end (scancel, or SLURM itself starts it again)"
    fi
    sleep 1 &
    wait $! || true # a trap ends it early
done
status=0
wait "$child" || status=$?

finish() { # finish CODE: the end of this job, not of a life that is followed by another one
    if [ -n "${CLS_SWEEP:-}" ]; then timeout 120 cls sweep "${CLS_SWEEP%/}/" || true; fi
    exit "$1"
}
[ "$status" -ne 0 ] || finish 0
now=$(written)
if [ -z "$now" ] || [ "$now" = "$before" ]; then
    finish "$status" # it came to an end before it could say how
fi
code=$(sed -n 's/.*"code": \([0-9]*\).*/\1/p' "$out/exit.json")
if [ "$(outcome)" != stopped ]; then
    finish "${code:-$status}"
fi
# Preempted where the site sends no signal to the batch script: the processes got SIGTERM, this shell nothing.
preempted=$(scontrol show job -o "$job" | grep -c 'PreemptTime=[0-9]') || true
if [ "$asked" = TERM ]; then
    : # scancel is final, and SLURM itself queues a preempted job again
elif [ "$asked" = USR1 ] || [ "${preempted:-0}" -gt 0 ] || grep -q 'the job ends in' "$out/exit.json"; then
    if [ "$lives" -ge "$most" ]; then
        goes_on "queued again $lives times, and CLS_RESTARTS is $most"
    elif scontrol requeue "$job"; then
        sleep 60 & # SLURM ends this script
        wait $! || true
    else
        goes_on "this job cannot be queued again"
    fi
else
    goes_on "stopped"
fi
finish "${code:-$status}"
