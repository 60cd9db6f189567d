"""What answering weighs: one text query, and a service until it is ready.

    python tests/bench/light.py --index demo-data/stamps.index [--python PYTHON] [--torch PYTHON]

Each is a process of its own, timed by the processor's seconds that it and its children took (the
clock says more about the machine's other work) and by its peak of resident memory. In turns with
them `import torch`, where --torch names an interpreter that has it: the ratio is what compares
machines. Bytecode is written before anything is timed, as an installation has it. --python names
the interpreter of the environment to measure, and what it weighs on disk is told. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import json, os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(processor's seconds, peak MiB) of one command, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *command], capture_output=True, text=True, env=environment
    )
    code, seconds, peak = json.loads(done.stdout)
    assert code == 0, command
    return seconds, peak


def ready(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """The same of a service, when /readyz first answers 200."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5).read()
                break
            except OSError:
                time.sleep(0.02)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(field) for field in fields[11:15])  # its own, and of children it waited for
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+)", status)
        assert peak is not None
        return ticks / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1024
    finally:
        process.terminate()
        process.communicate(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch", help="an interpreter that has torch, for the ratio")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    ours = [options.python, "-m", "service.cli.main"]
    index = ["--index", str(options.index)]
    tasks = {
        "search": (measured, [*ours, "search", *index, "a bird with colourful feathers"]),
        "serve_ready": (ready, [*ours, "serve", *index, "--port", "0"]),
    }
    if options.torch:
        tasks["import_torch"] = (measured, [options.torch, "-c", "import torch"])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for number in range(options.rounds + 1):
        for name, (how, command) in tasks.items():
            figures = how(command, environment)
            if number:  # the first writes bytecode and fills the page cache
                found[name].append(figures)
    result: dict[str, Any] = {
        name: {
            "cpu_s": round(statistics.median(cpu for cpu, _ in figures), 3),
            "peak_mib": round(statistics.median(peak for _, peak in figures), 1),
        }
        for name, figures in found.items()
    }
    if options.torch:
        ratios = [
            search / torch
            for (search, _), (torch, _) in zip(found["search"], found["import_torch"], strict=True)
        ]
        result["search_of_import_torch"] = round(statistics.median(ratios), 3)
    prefix = Path(options.python).absolute().parents[1]
    used = subprocess.run(["du", "-sm", str(prefix)], capture_output=True, text=True).stdout
    result["environment_mb"] = int(used.split()[0])
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result["python"] = platform.python_version()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
