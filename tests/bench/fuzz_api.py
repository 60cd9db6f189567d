"""schemathesis over the OpenAPI document of a running service, with a key and without.

    python tests/bench/fuzz_api.py --schemathesis PATH/TO/schemathesis --cases 2000

schemathesis has pins of its own, so it lives in an environment of its own
(`python -m venv X && X/bin/pip install schemathesis`). The service runs as a process with the
colour encoder of the tests. Every answer is read from schemathesis' own record: none may be a
server error, every refusal must be a documented problem, and without a key nothing but health may
answer. The last line is JSON; the exit status is 1 if anything of that does not hold.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

from keyed import Keys  # noqa: E402
from services import build_colours  # noqa: E402
from serving import server  # noqa: E402

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method"
)
OPEN = ("/healthz", "/readyz")
KNOWN = {
    "POST /v1/search/batch": "an invalid search is answered in its place, with 200 over all",
    "PUT /v1/items/{id}/thumbnail": "is that of an item whose id ends so",
}
"""What schemathesis takes for a disagreement with the document, and why it is none."""


def fuzz(
    command: str, url: str, out: Path, *, examples: int, key: str | None, document: Path
) -> subprocess.CompletedProcess[str]:
    checks = CHECKS if key else "not_a_server_error"
    arguments = [
        command, "run", str(document), "--url", url, "--checks", checks, "--workers", "1",
        "--max-examples", str(examples), "--seed", "1", "--phases", "examples,coverage,fuzzing",
        "--continue-on-failure", "--request-timeout", "60", "--warnings", "off", "--no-color",
        "--report", "ndjson", "--report-ndjson-path", str(out),
        "--generation-database", "none", "--suppress-health-check", "all",
    ]  # fmt: skip
    if key:
        arguments += ["--header", f"Authorization: Bearer {key}"]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=out.parent, timeout=3000)


def answers(report: Path) -> Iterator[tuple[str, str, int, str, bytes]]:
    """Method, address, status, media type and body of every answer in a record."""

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            if isinstance(node.get("request"), dict) and isinstance(node.get("response"), dict):
                yield node
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for line in report.read_text(encoding="utf-8").splitlines():
        for one in walk(json.loads(line)):
            request, response = one["request"], one["response"]
            headers = {name.lower(): value for name, value in response["headers"].items()}
            kind = headers.get("content-type", [""])
            body = (response.get("content") or {}).get("$base64", "")
            yield (
                request["method"], request["uri"], response["status_code"],
                kind[0] if isinstance(kind, list) else kind, base64.b64decode(body),
            )  # fmt: skip


def judge(report: Path, codes: dict[str, Any], *, keyed: bool) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    for method, address, status, kind, body in answers(report):
        statuses[status] += 1
        what = f"{method} {address[:200]} -> {status}"
        path = "/" + address.split("://", 1)[-1].partition("/")[2].partition("?")[0]
        if not keyed and path not in OPEN and status not in (401, 429, 405, 400, 414, 431):
            wrong.append(f"{what} without a key")
        if keyed and status in (401, 403, 429):
            wrong.append(f"{what} with a key")
        if status >= 500:
            wrong.append(f"{what}: a server error")
        if status >= 400 and method != "HEAD":
            document = json.loads(body) if kind == "application/problem+json" else {}
            if document.get("code") not in codes or document.get("status") != status:
                wrong.append(f"{what}: {kind} is no documented problem")
    return {
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "wrong": wrong[:50],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"))
    parser.add_argument("--cases", type=int, default=2000, help="at least so many with a key")
    parser.add_argument("--log", type=Path, help="where schemathesis' words go")
    options = parser.parse_args()
    if not options.schemathesis:
        parser.error("schemathesis is not on the PATH; see --help")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        index, keys = build_colours(root / "colours.index"), Keys.make(root / "keys.json")
        how = ["--keys", str(keys.path), "--writable"]
        with server(index, root / "log", *how) as (_, url):
            from urllib.request import Request, urlopen

            asked = Request(url + "/openapi.json", headers={"api-key": keys.writer})
            with urlopen(asked, timeout=30) as response:
                document = json.load(response)
            codes = document["components"]["x-problem-codes"]
            # told of the keys, schemathesis would send made-up ones beside ours
            del document["components"]["securitySchemes"]
            for path in document["paths"].values():
                for operation in path.values():
                    operation.pop("security", None)
            (root / "openapi.json").write_text(json.dumps(document))
            operations = sum(map(len, document["paths"].values()))
            result: dict[str, Any] = {"benchmark": "fuzz_api", "operations": operations}
            for name, key, cases in (
                ("with_key", keys.writer, options.cases),
                ("without_key", None, max(100, options.cases // 4)),
            ):
                report = root / f"{name}.ndjson"
                done = fuzz(
                    options.schemathesis, url, report, key=key,
                    examples=max(1, -(-cases // operations)), document=root / "openapi.json",
                )  # fmt: skip
                if options.log:
                    options.log.with_suffix(f".{name}.txt").write_text(done.stdout + done.stderr)
                found = judge(report, codes, keyed=key is not None)
                failed = set(re.findall(r"^_+ ([A-Z]+ /\S*) _+$", done.stdout, re.MULTILINE))
                # 0: nothing found; 1: a check failed
                sound = done.returncode == 0 or (done.returncode == 1 and failed <= set(KNOWN))
                result[name] = {**found, "failed": sorted(failed), "sound": sound}
        trouble = "Traceback" in (root / "log").read_text()
    result["traceback_logged"] = trouble
    result["ok"] = not trouble and all(
        not result[name]["wrong"] and result[name]["sound"] for name in ("with_key", "without_key")
    )
    print(json.dumps(result, indent=1) if sys.stdout.isatty() else json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
