"""Programs of several processes, started by the MPI that mpi4py uses here."""

import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.network import Network
from support.ranks import world_size

_BESIDE_PYTHON = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
_MPIEXEC = _BESIDE_PYTHON or shutil.which("mpiexec")
_LIMIT = 120.0  # seconds; every program ends far earlier, unless it hangs

needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or _MPIEXEC is None or world_size() is not None,
    reason="needs mpi4py and mpiexec",
)


def _is_open_mpi() -> bool:
    assert _MPIEXEC is not None
    version = subprocess.run([_MPIEXEC, "--version"], capture_output=True, text=True, check=True)
    return "Open MPI" in version.stdout


def _command(ranks: int, network: Network | None) -> list[str]:
    """Return mpiexec with its options: on the hosts of a network, or on this one."""
    assert _MPIEXEC is not None
    command = [_MPIEXEC, "-n", str(ranks)]
    hosts = network.addresses if network else []
    places = ",".join(f"{host}:{-(-ranks // len(hosts))}" for host in hosts)
    if _is_open_mpi():
        command += ["--map-by", "node:oversubscribe"]  # more ranks than cores
        command += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        if network:
            command += ["--host", places, "--prtemca", "plm_ssh_agent", str(network.remote_shell)]
            command += ["--mca", "pml", "ob1", "--mca", "btl", "tcp,sm,self"]
            command += ["-x", "PATH", "-x", "PYTHONPATH"]
    elif network:
        command += ["-hosts", places, "-iface", "eth0"]
        command += ["-launcher", "ssh", "-launcher-exec", str(network.remote_shell)]
        # Otherwise UCX finds that the hosts share a memory.
        command += ["-genv", "UCX_TLS", "tcp,self"]
    return network.command(hosts[0], command) if network else command


class Job:
    """A program in several processes; as a context manager, it has ended after the block.

    The code can import `support`. It runs under ``python -m mpi4py``, as the documentation of
    `schuss.mpi` recommends.
    """

    def __init__(
        self,
        ranks: int,
        code: str,
        *arguments: Any,
        network: Network | None = None,
    ) -> None:
        path = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        program = [
            sys.executable,
            "-m",
            "mpi4py",
            "-c",
            code,
            *map(str, arguments),
        ]
        self._process = subprocess.Popen(
            [*_command(ranks, network), *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:  # closes the pipes, which a stray rank may keep open
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def line(self) -> str:
        """Return the next line that a rank prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def end(self, limit: float = _LIMIT) -> tuple[int, str, str]:
        """Wait for the end; return the status, and what the ranks printed."""
        stdout, stderr = self._process.communicate(timeout=limit)
        return self._process.returncode, stdout, stderr


def mpiexec(ranks: int, code: str, *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Run code in so many processes, as `Job` does; return the status, and what they printed."""
    with Job(ranks, code, *arguments, **options) as job:
        return job.end()
