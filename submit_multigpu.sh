#!/bin/bash
# One run on several GPUs of several nodes, a process each (multi_gpu: true or fsdp):
# submit_multiple.py jobs/x.yaml -s submit_multigpu.sh
# ---- Facts of the cluster: change these to yours (`sinfo -o "%P %f %G"` lists them) ----
#SBATCH --partition=killable
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --mem=128G
#SBATCH --time=1-00:00:00
# ---------------------------------------------------------------------------------------
# Two minutes before the time limit the run gets a signal: it saves its state, and another attempt
# resumes from there, as after a preemption. More than two where a step or saving takes longer.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# As many threads as cores of a process; srun does not know by itself how many those are.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The environment's own Python, whatever .bashrc says: the one that submitted. With --srun it
# starts train.py once a task. The processes meet at the first node, at a port that follows from
# the job's number; MASTER_ADDR and MASTER_PORT say otherwise.
# `exec` leaves no shell between Slurm and Python: signals arrive. Until Python listens, USR1
# would end the job. `--max-timeouts N` before train.py: how often it resumes (100).
trap '' USR1
exec "${EXPERIMENT_PYTHON:-.venv/bin/python}" -m src.submit.attempt --srun train.py "$1"
