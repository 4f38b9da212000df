"""submissions/NNN.sh: what sbatch gets for an array, so that any submit script runs as a task.

It begins with the #SBATCH lines of the submit script, then finds the row of its task and
calls the script with the row's spec.yaml, as `sbatch SCRIPT FOLDER/spec.yaml` would.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

# The tasks are ours to number; waiting for them would hold up the submission.
OURS = re.compile(r"#SBATCH +(--array|-a|--wait\b|-W)")


def header(script: str) -> tuple[str, list[str]]:
    """(interpreter, #SBATCH lines): those before the first command, which are all that count."""
    first, *lines = script.splitlines()
    directives = []
    for line in lines:
        if line.startswith("#SBATCH"):
            if not OURS.match(line):
                directives.append(line)
        elif line.strip() and not line.startswith("#"):
            break
    return first[2:].strip() or "/bin/bash", directives


def array_script(script: Path, folder: Path, variables: Mapping[str, str], *, pack: int) -> str:
    """The text of NNN.sh. folder: NNN/, in which K leads to the row, or rows, of task K."""
    interpreter, directives = header(script.read_text(errors="replace"))
    body = _PACKED if pack > 1 else _SINGLE
    return "\n".join(
        [
            "#!/bin/bash",
            *directives,
            "# Written by submit_multiple.py: what a task of the array does.",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"folder={shlex.quote(str(folder))}/$SLURM_ARRAY_TASK_ID",
            f'run() {{ exec {interpreter} {shlex.quote(str(script))} "$1/spec.yaml"; }}',
            body.replace("PACK", str(pack)),
        ]
    )


# squeue shows the row's name once it runs; nothing waits for that.
_SINGLE = """\
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
row=$(readlink -f "$folder")
echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
scontrol update jobid="$job" name="${row##*/}" >/dev/null 2>&1 &
run "$row"
"""
_PACKED = """\
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
threads=$((${SLURM_CPUS_ON_NODE:-1} / PACK))
beside=("$folder"/*/)
rows=() programs=() stopped=() failed=0 stop=
# Signals reach this shell alone: pass them on.
pass_on() { stop=$1; kill -s "$1" "${programs[@]}" 2>/dev/null; }
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
for row in "$folder"/*/; do
    row=$(readlink -f "$row")
    # What ended by itself is not run again where the job begins again for its neighbours.
    if [ -n "$SLURM_RESTART_COUNT" ] && read -r code <"$folder/${row##*/}.ended"; then
        ((code == 0)) || failed=1
        continue
    fi 2>/dev/null
    (
        echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
        export EXPERIMENT_SHARES_JOB=${#beside[@]} OMP_NUM_THREADS=$((threads > 1 ? threads : 1))
        run "$row"
    ) >>"$row/job.log" 2>&1 &
    programs+=($!) rows+=("$row")
done
[ -z "$stop" ] || pass_on "$stop"  # it came before all were there
while ((${#programs[@]})); do
    sleep 1 &
    wait $!  # which a signal interrupts
    for i in "${!programs[@]}"; do
        kill -0 "${programs[i]}" 2>/dev/null && continue
        wait "${programs[i]}"; code=$?
        echo "--- ended: exit code $code ---" >>"${rows[i]}/job.log"
        echo "exit code $code: ${rows[i]##*/}"
        ((code == 0)) || failed=1
        ((code == 75)) && stopped+=("${rows[i]}/spec.yaml")
        # 69: it is not to go on. Others may have been ended by the signal.
        if [ -z "$stop" ] || ((code == 0 || code == 69)); then
            echo $code >"$folder/${rows[i]##*/}.ended"
        fi
        unset "programs[i]"
    done
done
# The job can begin again only once, when nobody saves any more.
((${#stopped[@]})) && "$EXPERIMENT_PYTHON" -m src.grid.slurm.requeue "${stopped[@]}"
exit $failed
"""
