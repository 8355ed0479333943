"""Hosts on one machine: network namespaces, and a network among them that this process carries.

A thread forwards the Ethernet frames, so that a test can make the links slow and lossy and cut
them, on any Linux that lets this user make namespaces and TAP devices.
"""

import heapq
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 2, 0x1000
_MTU = 9000
_LARGEST_QUEUE = 0.2  # seconds that a frame waits for a link before it is dropped
# Called as ssh is: it runs a command on a host, which has a network and a name of its own.
_REMOTE_SHELL = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec "{prefix}$host" unshare --uts sh -c 'hostname "$0"; eval "$*"' "$host" "$@"
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """Hosts with addresses 10.77.0.1, 10.77.0.2, …, each linked to all others."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.addresses = [f"10.77.0.{i + 1}" for i in range(hosts)]
        self.remote_shell = folder / "remote_shell"
        self.remote_shell.write_text(_REMOTE_SHELL.format(prefix=self._prefix))
        self.remote_shell.chmod(0o755)
        self.delay = 0.0
        """Seconds from one host to another."""
        self.loss = 0.0
        """Which part of the frames does not arrive."""
        self.rate = float("inf")
        """Bytes a second that a host can send."""
        self.frames = 0
        self._cut: set[str] = set()
        self._taps: dict[int, str] = {}
        self._free_at = dict.fromkeys(self.addresses, 0.0)
        self._random = random.Random(0)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    @property
    def _prefix(self) -> str:
        return f"schuss-{os.getpid()}-"

    def cut(self, address: str) -> None:
        """Lose all frames from and to a host from now on."""
        self._cut.add(address)

    def command(self, address: str, command: list[str]) -> list[str]:
        """Return the command that runs a command on a host."""
        return ["ip", "netns", "exec", f"{self._prefix}{address}", *command]

    def open(self) -> None:
        """Make the hosts; OSError or CalledProcessError where this user may not."""
        from fcntl import ioctl  # Windows has none

        for address in self.addresses:
            name = f"{self._prefix}{address}"
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._taps[tap] = address
            request = struct.pack("16sH22x", b"schuss%d", _IFF_TAP | _IFF_NO_PI)
            device = ioctl(tap, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
            _ip("netns", "add", name)
            _ip("link", "set", device, "netns", name, "name", "eth0", "mtu", str(_MTU))
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # Connections to a host that is gone are given up after seconds, not a quarter of an
            # hour: Open MPI's mpiexec waits for that.
            _ip("netns", "exec", name, "sh", "-c", "echo 4 > /proc/sys/net/ipv4/tcp_retries2")
        self._thread.start()

    def close(self) -> None:
        """End all processes of the hosts, and remove the hosts."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        for tap in self._taps:
            os.close(tap)
        for address in self._taps.values():
            self.end_processes(address)
            subprocess.run(["ip", "netns", "delete", f"{self._prefix}{address}"], check=False)

    def end_processes(self, address: str) -> None:
        """Kill all processes of a host, as a loss of power does."""
        command = ["ip", "netns", "pids", f"{self._prefix}{address}"]
        for pid in subprocess.run(command, capture_output=True, check=False).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def _carry(self) -> None:
        """Forward frames until the network is closed."""
        poll = select.poll()
        for tap in self._taps:
            poll.register(tap, select.POLLIN)
        under_way: list[tuple[float, int, int, bytes]] = []  # by the time of their arrival
        while not self._closed.is_set():
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _deliver(*heapq.heappop(under_way)[2:])
            wait = under_way[0][0] - now if under_way else 0.1
            for tap, _ in poll.poll(max(0.0, wait) * 1000):
                for frame in _frames(tap):
                    self.frames += 1
                    arrival = self._arrival(self._taps[tap], len(frame))
                    for other in self._reached_by(tap):
                        if arrival > time.monotonic():
                            heapq.heappush(under_way, (arrival, self.frames, other, frame))
                        elif arrival:
                            _deliver(other, frame)

    def _reached_by(self, tap: int) -> Iterator[int]:
        for other, address in self._taps.items():
            if other != tap and not self._cut & {address, self._taps[tap]}:
                yield other

    def _arrival(self, address: str, size: int) -> float:
        """Return when a frame from this host arrives; 0 if it does not."""
        now = time.monotonic()
        sent = max(now, self._free_at[address])
        if sent - now > _LARGEST_QUEUE or self._random.random() < self.loss:
            return 0.0
        self._free_at[address] = sent + size / self.rate
        return self._free_at[address] + self.delay


def _frames(tap: int) -> Iterator[bytes]:
    for _ in range(64):  # then those from other hosts
        try:
            yield os.read(tap, _MTU + 64)
        except BlockingIOError:
            return


def _deliver(tap: int, frame: bytes) -> None:
    with suppress(OSError):  # the receiver's queue is full
        os.write(tap, frame)


@contextmanager
def network(folder: Path, hosts: int) -> Iterator[Network]:
    """Make hosts for the block; skip the test where this user may not."""
    made = Network(folder, hosts)
    try:
        try:
            made.open()
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this user may not make network namespaces: {error}")
        yield made
    finally:
        made.close()
