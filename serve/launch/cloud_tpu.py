"""A script that starts a service on all hosts of a Cloud TPU slice, over gcloud's ssh."""

import shlex
from collections.abc import Sequence

from serve.launch.detect import PORT
from serve.launch.local import COMMAND
from serve.launch.settings import CloudTpuSettings, LaunchSettings
from serve.launch.ssh import in_home

TOKEN_FILE = ".distkv-join-token"
"""In the home of the user on every host."""

SCRIPT = """\
#!/bin/bash
# Ends when the service has ended. To stop it: distkv client drain, through an ssh to worker 0.
set -euo pipefail
umask 077

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' > "$folder/{token_file}"
gcloud compute tpus tpu-vm scp "$folder/{token_file}" {name}:{token_file} --worker=all{where}

gcloud compute tpus tpu-vm ssh {name} --worker=all{where} --command={command}
"""

# The slice's metadata says which host this is, and where the first one is. The token is read once,
# at the start: what is left of it in the home is removed with the process.
REMOTE = """\
set -eu
chmod 600 ~/{token_file}
trap 'rm -f ~/{token_file}' EXIT
attribute() {{
  curl -sSf -H 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
rank=$(attribute agent-worker-number)
first=$(attribute worker-network-endpoints | cut -d, -f1 | cut -d: -f3)
{folder}{command} \\
  --coordinator "$first:{port}" --num-hosts {num_hosts} --host-rank "$rank" \\
  --join-token-file ~/{token_file}
"""


def script_of(
    serve_args: Sequence[str],
    num_hosts: int,
    slice_name: str,
    settings: LaunchSettings,
    cloud_tpu: CloudTpuSettings,
) -> str:
    """Write the script.

    Args:
        serve_args: As after `distkv serve`.
        num_hosts: Hosts of the slice.
        slice_name: As gcloud calls it.
        settings: Where and how to start there.
        cloud_tpu: Where the slice is.
    """
    words = [*settings.prefix, settings.python, *COMMAND[1:], "serve", *serve_args]
    remote = REMOTE.format(
        token_file=TOKEN_FILE,
        folder="" if settings.folder is None else f"cd {in_home(settings.folder)}\n",
        command=shlex.join(words),
        port=PORT,
        num_hosts=num_hosts,
    )
    where = {"zone": cloud_tpu.zone, "project": cloud_tpu.project}
    return SCRIPT.format(
        name=shlex.quote(slice_name),
        token_file=TOKEN_FILE,
        where="".join(f" --{key}={shlex.quote(value)}" for key, value in where.items() if value),
        command=shlex.quote(remote),
    )
