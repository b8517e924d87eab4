#!/bin/bash
#SBATCH --job-name=zeropage
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
# One task is one rank: --ntasks-per-node is the number of GPUs of a node. Options of sbatch in the command have
# precedence over the lines above:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 examples/slurm.sh examples/train_gpt.py --steps 60
#
# PYTHON names the interpreter, for example that of a virtual environment on a file system that all nodes share.
set -euo pipefail
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=${MASTER_ADDR:-$first_node}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
srun "${PYTHON:-python}" "$@"
