#!/bin/bash
# sbatch launch/slurm.sh --config=configs/digits.py --workdir=/shared/runs/x --mode=train
# One task a node drives all GPUs of it. The folder of the run is one that all nodes see.
#SBATCH --job-name=score-flow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300     # to the tasks, five minutes before the time is over: they save, and leave with 75
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=score-flow-%j.log

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" main.py "$@"
code=$?
case $code in # stopped and saved; a process was lost; killed: all of them start again, a hundred times at most
  75 | 76 | 137) [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
