#!/usr/bin/env bash
# Train on a SLURM cluster; whatever follows goes to train.py:
#
#   sbatch slurm/train.sh mlp-head --data.path photos
#   sbatch -p PARTITION --nodes=2 --gpus-per-node=4 --cpus-per-task=16 slurm/train.sh mlp-head --data.path photos
#
# The run directory is --out, or runs/RECIPE-JOBID below the directory of the sbatch. Before the time limit, and when it
# is preempted, the run saves, leaves, is queued again and goes on; after any other end (done, an error, scancel) it is
# not. Every #SBATCH line may be overruled on sbatch's command line or by SBATCH_… variables. Inside salloc
# `bash slurm/train.sh` trains on what was allocated; Ctrl-C saves. Settings (environment):
#   CLS_HOME         the folder with train.py; else found from this script, also by a copy or a link of it
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

# USR1 comes before the time limit and at a preemption, INT from a terminal, TERM with scancel and, if saving takes too
# long, at the limit.
asked=''
trap 'asked=${asked:-USR1}' USR1
trap 'asked=${asked:-INT}' INT
trap 'asked=TERM' TERM

# --- the checkout: the same lines in every script of this folder, so that a copy works under any name and anywhere ---
# SLURM runs a copy called slurm_script; Command= of the job is the original's path and the arguments, both with spaces.
# An array's member goes by its own name: the number alone may mean the whole array.
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
        "export CLS_HOME=FOLDER, the one with train.py, and submit again" >&2
    exit 2
fi
# ---

[ "${0##*/}" = slurm_script ] || script=${CLS_SCRIPT:-$script} # the one that was submitted started this one
# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
whole CLS_RESTARTS
lives=${SLURM_RESTART_COUNT:-0} most=${CLS_RESTARTS:-100}
recipe=digits out='' data=''
case ${1:-} in -* | "") ;; *) recipe=$1 ;; esac
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --out)
        out=$(expanded "${arguments[i + 1]:-}")
        [ -z "$out" ] || arguments[i + 1]=$out
        ;;
    --out=*)
        out=$(expanded "${arguments[i]#--out=}")
        arguments[i]=--out=$out
        ;;
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
    local here=()
    [ "$PWD" -ef "${SLURM_SUBMIT_DIR:-$PWD}" ] || here=(--chdir "$PWD") # paths are relative to it
    here+=("${script:-$root/slurm/train.sh}")
    echo "slurm/train.sh: $1. The same run goes on with: sbatch ${here[*]@Q} ${arguments[*]@Q}" >&2
}
again() { # again WHY: put the job back into the queue
    if [ "$lives" -ge "$most" ]; then
        goes_on "$1, queued again $lives times, and CLS_RESTARTS is $most"
    elif scontrol requeue "$job"; then
        sleep 60 & # SLURM ends this script
        wait $! || true
    else
        goes_on "$1, and this job cannot be queued again"
    fi
}
ended() { # TERM: why, and what follows, at once, because there are KillWait seconds left
    local state
    state=$(scontrol show job -o "$job") || state=''
    case $state in
    '' | *' JobState=RUNNING '*' Reason=None '*) # a busy controller: the signal may be here before the reason is
        sleep 1
        state=$(scontrol show job -o "$job") || state=''
        ;;
    esac
    case $state in
    *' Reason=TimeLimit '* | *' JobState=TIMEOUT '*)
        asked=LIMIT
        goes_on "the time limit came before the run had left (sbatch --signal=B:USR1@600 asks it earlier)"
        again "out of time"
        ;;
    *) goes_on "asked to end (scancel, or SLURM itself starts it again)" ;;
    esac
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
CLS_DATA=$(expanded "$data")
export CLS_DATA
"${step[@]}" --wait=600 --kill-on-bad-exit=0 \
    bash "$root/slurm/node.sh" "${launch[@]}" "$root/train.py" "${arguments[@]}" &
child=$! told=''
while kill -0 "$child" 2>/dev/null; do
    case $asked in
    USR1 | INT) # again and again: at its start the run clears the request of an earlier life away
        if [ -f "$out/config.yaml" ]; then touch "$out/stop"; fi
        ;;
    TERM)
        [ -n "$told" ] || ended
        told=yes
        ;;
    esac
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
now=$(written) said=''
if [ -n "$now" ] && [ "$now" != "$before" ]; then said=$(outcome); fi # '': it came to an end before it could say how
code=$(sed -n 's/.*"code": \([0-9]*\).*/\1/p' "$out/exit.json" 2>/dev/null) || true
[ -n "$said" ] && [ -n "$code" ] || code=$status
if [ -n "$said" ] && [ "$said" != stopped ]; then
    finish "$code"
fi
# Preempted where the site sends no signal to the batch script: the processes got SIGTERM, this shell nothing.
preempted=$(scontrol show job -o "$job" | grep -c 'PreemptTime=[0-9]') || true
case $asked in
TERM | LIMIT) ;; # scancel is final, SLURM itself queues a preempted job again, and ended did it at the limit
USR1) again "asked to leave" ;;
*)
    if [ "${preempted:-0}" -gt 0 ] || { [ -n "$said" ] && grep -q 'the job ends in' "$out/exit.json"; }; then
        again "asked to leave"
    elif [ -n "$said" ]; then
        goes_on "stopped"
    fi
    ;;
esac
finish "$code"
