#!/bin/bash
# One run on several machines:  sbatch slurm.sh recipe.yaml --out /shared/runs/mine
# The directory and everything that the recipe names must lie where all machines see it.
#SBATCH --job-name=keel
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# Five minutes before the time is up the job queues again, under its own number, and goes on from its last checkpoint.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

leader=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --max-restarts 3 \
    --rdzv-backend c10d \
    --rdzv-endpoint "$leader:29500" \
    --rdzv-id "$SLURM_JOB_ID" \
    -m keel run "$@" &
wait "$!" # in the background, for a trap waits for what is in front
