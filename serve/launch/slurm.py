"""A batch script for Slurm: one task on every node, ended by rank 0."""

import shlex
from collections.abc import Sequence

from serve.launch.local import COMMAND
from serve.launch.settings import LaunchSettings, SlurmSettings
from serve.launch.ssh import in_home

SCRIPT = """\
#!/bin/bash
{head}
#SBATCH --no-kill
set -euo pipefail
umask 077
{folder}{exports}
# Every node must see this folder: the token of this job is in it, for as long as the job runs.
token_file=$(mktemp "$PWD/.distkv-join.XXXXXXXX")
trap 'rm -f "$token_file"' EXIT
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' > "$token_file"

# A task or node that is lost does not end the others: rank 0 goes on without it, or ends, and the
# others with it.
srun --nodes={num_hosts} --ntasks={num_hosts} --ntasks-per-node=1 --label \\
  --no-kill --kill-on-bad-exit=0 --wait=0 \\
{per_task}  {command} \\
  --launcher slurm --join-token-file "$token_file" &
srun_pid=$!

# Slurm sends TERM here before the time is up, and `scancel --batch --signal=TERM` when asked to:
# srun hands it on to all tasks, rank 0 drains, the others end with it.
trap 'kill -TERM "$srun_pid" 2>/dev/null' TERM
trap 'kill -INT "$srun_pid" 2>/dev/null' INT
while kill -0 "$srun_pid" 2>/dev/null; do wait "$srun_pid" || true; done
wait "$srun_pid"
"""


def script_of(
    serve_args: Sequence[str],
    num_hosts: int,
    settings: LaunchSettings,
    slurm: SlurmSettings,
    *,
    notice_s: int,
) -> str:
    """Write the script.

    Args:
        serve_args: As after `distkv serve`.
        num_hosts: Nodes.
        settings: Where and how to start there.
        slurm: What to ask for.
        notice_s: Seconds before the end of its time at which the service begins to stop.
    """
    asked = {
        "job-name": settings.name,
        "nodes": num_hosts,
        "ntasks-per-node": 1,
        "gpus-per-node": slurm.gpus_per_node,
        "cpus-per-task": slurm.cpus_per_node,
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time_limit,
        "output": f"{settings.name}-%j.log",
        "signal": f"B:TERM@{notice_s}",
    }
    # Not inherited from the job: srun asks for one core otherwise.
    cpus = slurm.cpus_per_node
    exports = [
        f"export {name}={shlex.quote(value)}\n" for name, value in settings.variables.items()
    ]
    return SCRIPT.format(
        head="\n".join(f"#SBATCH --{name}={value}" for name, value in asked.items() if value),
        folder="" if settings.folder is None else f"cd {in_home(settings.folder)}\n",
        exports="".join(exports),
        num_hosts=num_hosts,
        per_task="" if cpus is None else f"  --cpus-per-task={cpus} \\\n",
        command=shlex.join([settings.python, *COMMAND[1:], "serve", *serve_args]),
    )
