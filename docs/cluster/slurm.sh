#!/bin/bash
# A run on a Slurm allocation: Ray's head and the run on its first node, Ray's workers on all others.
#
#   sbatch --nodes=5 docs/cluster/slurm.sh train rollouts.workers=64 name=study
#
# What follows the script's name goes to `journeyman`; give `rollouts.workers` as many as the CPUs (GPUs) of the nodes
# carry. The environment in which `journeyman` and `ray` are found must be active when it is submitted, under the same
# path on each node, and run_dir on a disk that outlives the job: the same command goes on from its last checkpoint,
# also when Slurm puts the job back into the queue.
#SBATCH --job-name=journeyman
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# Whoever reaches the port may run code as you: a token keeps the other users of the cluster out.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_USAGE_STATS_ENABLED=0
# Two jobs of yours may share a node.
port=$((20000 + SLURM_JOB_ID % 10000))
temporary=/tmp/ray-$SLURM_JOB_ID

asked=(--ntasks-per-node=1 --cpus-per-task="$cpus" --overlap --export=ALL)
first=(--nodes=1 --nodelist="$head" "${asked[@]}")

# Nodes may have several networks: each says by which address the others reach it.
# shellcheck disable=SC2016  # it is worked out there
own='$(hostname --ip-address | cut -d " " -f 1)'
address=$(srun "${first[@]}" bash -c "echo $own"):$port
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait' EXIT

srun "${first[@]}" bash -c "exec ray start --head --block --node-ip-address=$own --port=$port \
    --num-cpus=$cpus --temp-dir=$temporary --include-dashboard=false --disable-usage-stats" &
started+=($!)
for _ in $(seq 120); do
    ray health-check --address "$address" 2>/dev/null && break
    kill -0 "${started[0]}" # it has ended: its own words say why
    sleep 1
done

if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --nodelist="$others" "${asked[@]}" \
        bash -c "exec ray start --block --address=$address --node-ip-address=$own \
        --num-cpus=$cpus --disable-usage-stats" &
    started+=($!)
fi

# Workers join as they come; the run waits for the first of them.
journeyman "$@" rollouts=ray rollouts.address="$address"
