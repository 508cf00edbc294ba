# shellcheck shell=bash
# Environment of a job. The scripts of this directory source it on every node; source it on the login node too
# (`. slurm/env.sh`): then `cls fetch` fills the caches that the jobs read. Variables that are already set are kept.
#
#   CLS_MODULES   modules to load, e.g. "python/3.12 cuda"
#   CLS_VENV      virtual environment. Default: .venv beside this directory; without one, the python in PATH
#   CLS_CACHE     directory of all caches. Default: $SCRATCH/cls; without SCRATCH, ~/.cache/cls
#   CLS_OFFLINE   1: the nodes have no network; 0: they have. Default: the first node tries
#   CLS_STAGE     1: copy the data to each node's own disk (CLS_SCRATCH; default $TMPDIR, else /tmp) and read it there

if [ -n "${CLS_MODULES:-}" ]; then
    for _name in $CLS_MODULES; do module load "$_name"; done
fi
_venv=${CLS_VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}
if [ -f "$_venv/bin/activate" ]; then
    # shellcheck disable=SC1091  # the user's own environment
    . "$_venv/bin/activate"
elif [ -n "${CLS_VENV:-}" ]; then
    echo "slurm/env.sh: CLS_VENV is $_venv, which is not a virtual environment. Create it: python3 -m venv $_venv" >&2
    return 2
fi
unset _venv _name

# Home directories of clusters are small; one cache can fill them.
export CLS_CACHE=${CLS_CACHE:-${SCRATCH:-$HOME/.cache}/cls}
export HF_HOME=${HF_HOME:-$CLS_CACHE/huggingface}
export TORCH_HOME=${TORCH_HOME:-$CLS_CACHE/torch}
export WANDB_CACHE_DIR=${WANDB_CACHE_DIR:-$CLS_CACHE/wandb} WANDB_DATA_DIR=${WANDB_DATA_DIR:-$CLS_CACHE/wandb}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$CLS_CACHE/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$CLS_CACHE/inductor}
export MPLCONFIGDIR=${MPLCONFIGDIR:-$CLS_CACHE/matplotlib}
mkdir -p "$CLS_CACHE" "$MPLCONFIGDIR"

# Without a network each library would retry for minutes while the other processes wait. A proxy or a mirror counts as
# a network. Tried on nodes only: inside salloc the shell runs on another machine.
if [ -z "${CLS_OFFLINE:-}" ] && [ -n "${SLURMD_NODENAME:-}" ]; then
    export CLS_OFFLINE=0 # the first node decides for all
    if [ -z "${https_proxy:-}${HTTPS_PROXY:-}${HF_ENDPOINT:-}" ] &&
        ! timeout 5 bash -c '</dev/tcp/huggingface.co/443' 2>/dev/null; then
        CLS_OFFLINE=1
    fi
fi
if [ "${CLS_OFFLINE:-0}" = 1 ]; then
    export CLS_OFFLINE HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline}
fi

# Variables that `cls doctor --save True` found necessary on this node, e.g. NCCL_P2P_DISABLE=1. They describe the links
# inside a node. With several nodes only those that cannot affect the links between nodes are set.
_measured=$CLS_CACHE/nccl-$(hostname).sh
if [ -n "${SLURMD_NODENAME:-}" ] && [ -f "$_measured" ]; then
    if [ "${SLURM_NNODES:-1}" = 1 ]; then
        # shellcheck disable=SC1090  # its name contains the host name
        . "$_measured"
    else
        # shellcheck disable=SC1090  # as above
        . <(grep -E 'NCCL_(P2P|SHM)_DISABLE' "$_measured")
    fi
fi
unset _measured

# The smallest number of a SLURM list such as 16(x2),8.
_least() { tr , '\n' <<<"$1" | sed 's/(.*//' | sort -n | sed -n 1p; }

# whole NAME: exit unless that variable is a whole number or unset.
whole() {
    case ${!1:-0} in *[!0-9]* | 0?*)
        echo "slurm/env.sh: $1 is '${!1}': it must be a whole number, 0 or more" >&2
        exit 2
        ;;
    esac
}

# expanded PATH: print it with ~ expanded, as Python's os.path.expanduser does.
expanded() {
    local user home
    user=${1%%/*} user=${user#\~}
    case $1 in
    [~] | [~]/*) home=${HOME-$(getent passwd "$(id -u)" | cut -d: -f6)} ;;
    [~]*) home=$(getent passwd "$user" | cut -d: -f6) || home=$1 ;;
    *) home=$1 ;;
    esac
    if [ "$home" = "$1" ]; then printf '%s\n' "$1" && return; fi
    while [ "${home%/}" != "$home" ]; do home=${home%/}; done
    home+=${1#\~"$user"}
    printf '%s\n' "${home:-/}"
}

# machines ROOT ARGUMENTS…: set launch (the arguments of accelerate launch for the nodes and GPUs of this job), the
# values in it (per_node, config, first, port), and step (srun with one task on every node, however many tasks the job
# has: the launcher starts the processes of its node). ARGUMENTS are the program's own; they may select the CPU.
machines() {
    local total each cores root=$1
    shift
    whole CLS_PROCESSES
    # inside salloc both may be unset: then use all that was allocated
    each=1 cores=${SLURM_CPUS_PER_TASK:-}
    [ -z "${SLURM_NTASKS:-}" ] || each=$(_least "${SLURM_TASKS_PER_NODE:-1}")
    if [ -n "$cores" ]; then cores=$((cores * each)); else cores=$(_least "${SLURM_JOB_CPUS_PER_NODE:-1}"); fi
    if [ "$each" -gt 1 ]; then
        echo "slurm/env.sh: $each tasks on a node: one is started, with the $cores CPUs of all tasks. It starts one" \
            "process per GPU (CLS_PROCESSES)" >&2
    fi
    unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_SOCKET \
        SLURM_NTASKS_PER_CORE SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK
    # srun inherits neither --cpus-per-task nor, with --export=NONE, any variable
    step=(
        srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cores" --export=ALL
    )
    if [ -z "${SLURMD_NODENAME:-}" ]; then # inside salloc only a job step knows it
        SLURM_GPUS_ON_NODE=$(srun --nodes=1 --ntasks=1 printenv SLURM_GPUS_ON_NODE) || SLURM_GPUS_ON_NODE=0
    elif [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
        # without it a step may get fewer GPUs than the job has (--exclusive), or those of one task (--gpus-per-task)
        step+=(--gpus-per-node="$SLURM_GPUS_ON_NODE")
    fi
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    port=$((20000 + SLURM_JOB_ID % 10000)) # below the ephemeral ports
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    per_node=${CLS_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
    [ "$per_node" -gt 0 ] || per_node=1
    total=$((SLURM_NNODES * per_node))
    config=${CLS_ACCELERATE:-ddp}
    if [ -z "${CLS_ACCELERATE:-}" ]; then
        [ "$total" -gt 1 ] || config=one_gpu
        case " ${SLURM_GPUS_ON_NODE:-0} $* " in
        " 0 "* | *" --train.device cpu "* | *" --train.device=cpu "* | *" --device cpu "* | *" --device=cpu "*) config=cpu ;;
        esac
    fi
    # shellcheck disable=SC2034  # for the script that calls this
    launch=(
        --config_file "$root/accelerate_configs/$config.yaml" --num_machines "$SLURM_NNODES" --num_processes "$total"
        --main_process_ip "$first" --main_process_port "$port" --rdzv_backend static
    )
}

# A tar stream of names, contents and modes that does not depend on the order and age of the files; follows links.
_packed() { tar -C "$1" -h --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - -- "$2"; }

# stage SOURCE: copy a file or a directory to this node's disk, once for all jobs of this node, and print its path.
# If a file was added, replaced or changed, a new copy is made. The source is read once; the copy is read again and must
# have the same checksum before it gets its final name.
stage() {
    local source place name copy made found key
    source=$(realpath "$1") && name=$(basename "$source")
    key=$(find -L "$source" -printf '%P %s %T@\n' | LC_ALL=C sort | { echo "$source" && cat; } | sha256sum) || return
    place=${CLS_SCRATCH:-${TMPDIR:-/tmp}}/cls-$(id -un)/${key:0:12}
    copy=$place/$name
    mkdir -p "$place" || return
    (
        flock 9
        [ -e "$copy" ] && exit 0
        trap 'rm -rf "$place/new"' EXIT
        echo "slurm/env.sh: $(hostname): copying $source to $place" >&2
        rm -rf "$place/new" && mkdir "$place/new" || exit
        made=$(_packed "$(dirname "$source")" "$name" | tee >(tar -C "$place/new" -xf -) | sha256sum) || exit
        found=$(_packed "$place/new" "$name" | sha256sum) || exit
        if [ "$made" != "$found" ]; then
            echo "slurm/env.sh: $(hostname): the copy of $source in $place differs from the source (disk full?)" >&2
            exit 1
        fi
        mv "$place/new/$name" "$copy"
    ) 9>"$place/lock" || return
    echo "$copy"
}
