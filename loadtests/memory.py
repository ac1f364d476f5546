"""The memory and CPU time of a service: its own process and those it started, from /proc."""

import os
import re
from pathlib import Path

import msgspec


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of a process and its children, in MB (1e6 bytes)."""

    now: float
    peak: float
    """The most each ever had (VmHWM), added up."""


def memory_of(process_id: int) -> Memory:
    """The memory of a process and all below it. Raises OSError where it is gone."""
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace")
    kilobytes = dict(re.findall(r"^(VmRSS|VmHWM):\s+([0-9]+) kB$", status, re.MULTILINE))
    now, peak = int(kilobytes["VmRSS"]) * 1024 / 1e6, int(kilobytes["VmHWM"]) * 1024 / 1e6
    for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="ascii").split():
        below = memory_of(int(child))
        now, peak = now + below.now, peak + below.peak
    return Memory(now, peak)


def cpu_seconds_of(process_id: int) -> float:
    """CPU time of a process and all below it, so far. Raises OSError where it is gone."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="ascii").split():
        seconds += cpu_seconds_of(int(child))
    return seconds
