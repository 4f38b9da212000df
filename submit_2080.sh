#!/bin/bash
# One run on one GeForce RTX 2080: submit_multiple.py jobs/x.yaml -s submit_2080.sh
# ---- Facts of the cluster: change these to yours (`sinfo -o "%P %f %G"` lists them) ----
#SBATCH --partition=killable
#SBATCH --gpus=1
#SBATCH --constraint=geforce_rtx_2080
#SBATCH --cpus-per-task=2
#SBATCH --mem=32G
#SBATCH --time=1-00:00:00
# ---------------------------------------------------------------------------------------
#SBATCH --open-mode=append

# As many threads as cores, unless whoever calls shares them out (--pack).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
# The environment's own Python, whatever .bashrc says: the one that submitted.
# `exec` leaves no shell between Slurm and Python: signals arrive.
exec "${EXPERIMENT_PYTHON:-.venv/bin/python}" train.py "$1"
