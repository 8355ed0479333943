"""The CPU quota of the container that the process runs in."""

import os

CGROUPS, OWN_CGROUPS = "/sys/fs/cgroup", "/proc/self/cgroup"


def quota() -> int | None:
    """Return the CPU quota as a number of processors, rounded up; None without a quota.

    The quotas of the parent groups apply too. In version 1 of control groups, the CPU controller
    has a hierarchy of its own.
    """
    quotas = []
    for line in _text(OWN_CGROUPS).splitlines():
        _, controllers, path = (line + "::").split(":", 2)
        version_1 = "cpu" in controllers.split(",")
        if not version_1 and controllers != "":
            continue
        root = os.path.join(CGROUPS, "cpu") if version_1 else str(CGROUPS)
        names = [name for name in path.split("/") if name]
        for depth in range(len(names) + 1):
            group = os.path.join(root, *names[:depth])
            if version_1:
                limit = _text(os.path.join(group, "cpu.cfs_quota_us"))
                period = _text(os.path.join(group, "cpu.cfs_period_us"))
            else:
                limit, _, period = _text(os.path.join(group, "cpu.max")).partition(" ")
            if limit.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(-(-int(limit) // int(period)))
    return min(quotas, default=None)


def _text(path: str) -> str:
    # Not with pathlib: its import takes longer than that of schuss.
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # a signal handler raised it
            raise
        return ""
