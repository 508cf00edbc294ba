#!/usr/bin/env bash
# Train on a SLURM cluster. Arguments after the script go to train.py:
#
#   sbatch slurm/train.sh mlp-head --data.path photos
#   sbatch -p PARTITION --nodes=2 --gpus-per-node=4 --cpus-per-task=16 slurm/train.sh mlp-head --data.path photos
#
# The run directory is --out, or `out` in the file of --config, which is read when the job starts and at each resume.
# Default: runs/RECIPE-JOBID in the directory where you ran sbatch. Before the time limit and when it is preempted, the
# run saves and exits; the job is then queued again and the run resumes. After any other end (done, an error, scancel)
# it is not queued again. Options of sbatch and SBATCH_… variables override the #SBATCH lines. Inside salloc,
# `bash slurm/train.sh` trains on the allocated resources; Ctrl-C saves. Environment variables:
#   CLS_HOME         directory of train.py. Default: found from the path of this script, or of the file it links to
#   CLS_PROCESSES    processes per node. Default: one per GPU; one on a node without GPUs
#   CLS_ACCELERATE   name of a file in accelerate_configs (ddp, fsdp, …). Default: chosen by the number of processes
#   CLS_RESTARTS     how often the job may be queued again. Default: 100
#   and those of slurm/env.sh: caches, virtual environment, offline mode, copying of data to the node
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

# Signals: USR1 before the time limit and at preemption; INT from a terminal; TERM from scancel, and at the time limit
# if saving takes too long.
asked=''
trap 'asked=${asked:-USR1}' USR1
trap 'asked=${asked:-INT}' INT
trap 'asked=TERM' TERM

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

[ "${0##*/}" = slurm_script ] || script=${CLS_SCRIPT:-$script} # started by the submitted script, not by SLURM
# shellcheck source=slurm/env.sh
. "$root/slurm/env.sh"
whole CLS_RESTARTS
restarts=${SLURM_RESTART_COUNT:-0} limit=${CLS_RESTARTS:-100}
recipe=digits out='' data='' file=''
words=("$@")
case " $* " in *' --config '* | *' --config='*) file=yes ;; esac
if [ -n "$file" ]; then # the same arguments, with the fields of the file
    mapfile -t -d '' words < <(PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} python3 -m cls.commands.config_file "$@")
    [ "${#words[@]}" -gt 0 ] || exit 2 # it has printed why
fi
case ${words[0]:-} in -* | "") ;; *) recipe=${words[0]} ;; esac
for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
    --out)
        out=$(expanded "${words[i + 1]:-}")
        [ -z "$out" ] || words[i + 1]=$out
        ;;
    --out=*)
        out=$(expanded "${words[i]#--out=}")
        words[i]=--out=$out
        ;;
    --data.path) data=${words[i + 1]:-} ;;
    --data.path=*) data=${words[i]#--data.path=} ;;
    esac
done
arguments=("${words[@]}")
[ -z "$file" ] || arguments=("$@")
if [ -z "$out" ]; then
    out=runs/$recipe-$job
    arguments+=(--out "$out")
fi

outcome() { sed -n 's/.*"outcome": "\([a-z_]*\)".*/\1/p' "$out/exit.json" 2>/dev/null || true; }
written() { stat -c '%i %Y' "$out/exit.json" 2>/dev/null || true; }
resume_with() { # resume_with WHY: print the command that resumes this run
    local here=()
    [ "$PWD" -ef "${SLURM_SUBMIT_DIR:-$PWD}" ] || here=(--chdir "$PWD") # paths are relative to it
    here+=("${script:-$root/slurm/train.sh}")
    echo "slurm/train.sh: $1. Resume this run with: sbatch ${here[*]@Q} ${arguments[*]@Q}" >&2
}
again() { # again WHY: put the job back into the queue
    if [ "$restarts" -ge "$limit" ]; then
        resume_with "$1, queued again $restarts times, and CLS_RESTARTS is $limit"
    elif scontrol requeue "$job"; then
        sleep 60 & # SLURM ends this script
        wait $! || true
    else
        resume_with "$1, and this job cannot be queued again"
    fi
}
on_term() { # after TERM: find out why, and act at once: SLURM kills this script after KillWait seconds
    local state
    state=$(scontrol show job -o "$job") || state=''
    case $state in
    '' | *' JobState=RUNNING '*' Reason=None '*) # a busy controller: the signal may arrive before the reason
        sleep 1
        state=$(scontrol show job -o "$job") || state=''
        ;;
    esac
    case $state in
    *' Reason=TimeLimit '* | *' JobState=TIMEOUT '*)
        asked=LIMIT
        resume_with "the time limit was reached before the run had saved (sbatch --signal=B:USR1@600 gives more notice)"
        again "out of time"
        ;;
    *) resume_with "terminated (scancel, or SLURM itself starts it again)" ;;
    esac
}

if [ "$restarts" -gt 0 ] && [ "$(outcome)" = 'done' ]; then
    echo "slurm/train.sh: $out is finished" # some versions of SLURM start a finished job again
    exit 0
fi
if [ "$restarts" -gt "$limit" ]; then
    resume_with "queued again $restarts times, and CLS_RESTARTS is $limit"
    exit 1
fi

# --- the machines ---

machines "$root" "${words[@]}"
job_time() { # job_time Start: StartTime of the job as unix time; empty if unknown
    local text
    text=$(sed -n "s/.*\b$1Time=\([0-9][^ ]*\).*/\1/p" <<<"$shown" | sed -n 1p)
    [ -z "$text" ] || date -d "$text" +%s
}
SLURM_JOB_END_TIME=$(job_time End) SLURM_JOB_START_TIME=$(job_time Start)
CLS_SUBMIT_TIME=$(if [ "$restarts" -gt 0 ]; then job_time Submit; else job_time Eligible; fi) # a requeue submits again
export SLURM_JOB_END_TIME SLURM_JOB_START_TIME CLS_SUBMIT_TIME
# By default the launcher kills processes that have not exited 30 s after the first one; a checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
printf 'slurm/train.sh: job %s, attempt %s, %s: %s node(s) x %s process(es), %s.yaml, first node %s:%s -> %s\n' \
    "$job" "$restarts" "$SLURM_JOB_NODELIST" "$SLURM_NNODES" "$per_node" "$config" "$first" "$port" "$out"

# --- the run, and its end ---

before=$(written)
CLS_DATA=$(expanded "$data")
export CLS_DATA
"${step[@]}" --wait=600 --kill-on-bad-exit=0 \
    bash "$root/slurm/node.sh" "${launch[@]}" "$root/train.py" "${arguments[@]}" &
child=$! reported=''
while kill -0 "$child" 2>/dev/null; do
    case $asked in
    USR1 | INT) # every second: at its start the run deletes the stop request of an earlier attempt
        if [ -f "$out/config.yaml" ]; then touch "$out/stop"; fi
        ;;
    TERM)
        [ -n "$reported" ] || on_term
        reported=yes
        ;;
    esac
    sleep 1 &
    wait $! || true # a trap interrupts it
done
status=0
wait "$child" || status=$?

finish() { # finish CODE: end this job; not called for an attempt that is followed by another one
    if [ -n "${CLS_SWEEP:-}" ]; then timeout 120 cls sweep "${CLS_SWEEP%/}/" || true; fi
    exit "$1"
}
[ "$status" -ne 0 ] || finish 0
now=$(written) result=''
if [ -n "$now" ] && [ "$now" != "$before" ]; then result=$(outcome); fi # empty: killed before it could write exit.json
code=$(sed -n 's/.*"code": \([0-9]*\).*/\1/p' "$out/exit.json" 2>/dev/null) || true
[ -n "$result" ] && [ -n "$code" ] || code=$status
if [ -n "$result" ] && [ "$result" != stopped ]; then
    finish "$code"
fi
# At preemption some sites send SIGTERM to the processes and no signal to the batch script.
preempted=$(scontrol show job -o "$job" | grep -c 'PreemptTime=[0-9]') || true
case $asked in
TERM | LIMIT) ;; # scancel is final; SLURM itself queues a preempted job again; at the limit on_term has done it
USR1) again "stop request" ;;
*)
    if [ "${preempted:-0}" -gt 0 ] || { [ -n "$result" ] && grep -q 'the job ends in' "$out/exit.json"; }; then
        again "stop request"
    elif [ -n "$result" ]; then
        resume_with "stopped"
    fi
    ;;
esac
finish "$code"
