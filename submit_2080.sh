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
# Two minutes before the time limit the run gets a signal: it saves its state, and another attempt
# resumes from there, as after a preemption. More than two where a step or saving takes longer.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# As many threads as cores, unless whoever calls shares them out (--pack).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
# The environment's own Python, whatever .bashrc says: the one that submitted.
# `exec` leaves no shell between Slurm and Python: signals arrive. Until Python listens, USR1
# would end the job. `--max-timeouts N` before train.py: how often it resumes (100).
trap '' USR1
exec "${EXPERIMENT_PYTHON:-.venv/bin/python}" -m src.submit.attempt train.py "$1"
