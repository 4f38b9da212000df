#!/bin/bash
# One run on CPUs: sbatch submit_cpu.sh FOLDER/spec.yaml, or by submit_multiple.py -s submit_cpu.sh
# ---- Facts of the cluster: change these to yours (`sinfo` lists partitions) ----
#SBATCH --partition=cpu-killable
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=1-00:00:00
# --------------------------------------------------------------------------------
#SBATCH --open-mode=append

# As many threads as cores, unless whoever calls shares them out (--pack).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
# The environment's own Python, whatever .bashrc says: the one that submitted.
# `exec` leaves no shell between Slurm and Python: signals arrive.
exec "${EXPERIMENT_PYTHON:-.venv/bin/python}" train.py "$1"
