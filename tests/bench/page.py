"""The page: how long from the last key pressed to results on the screen.

    python tests/bench/page.py [--index stamps.index] [--url http://127.0.0.1:8000] [--rounds 3]

Types queries in a real browser as a person would and measures, inside the page, from the last
`input` event to the frame that shows the first hit, and to its picture being drawn. Both hold the
page's own pause. Without `--index` and `--url` the photographs of the scikit-image wheel are
indexed first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

QUERIES = (
    "a cat", "a red apple", "一只猫", "something round", "a bird in a tree", "食物",
    "a person smiling", "un chien", "night sky", "a machine with wheels",
)  # fmt: skip
WATCH = """
() => {
  const field = document.getElementById("query");
  const results = document.getElementById("results");
  window.bench = {};
  field.addEventListener("input", () => (window.bench = { typed: performance.now() }), true);
  new MutationObserver(() => {
    const bench = window.bench;
    if (bench.hits || !results.querySelector("button.card")) return;
    bench.hits = -1;
    requestAnimationFrame(() => {
      bench.hits = performance.now() - bench.typed;
      const image = results.querySelector("img");
      const drawn = () => (bench.picture = performance.now() - bench.typed);
      if (!image) drawn();
      else image.decode().then(drawn, drawn);
    });
  }).observe(results, { childList: true });
}
"""


def measure(page: Any, words: str) -> dict[str, float]:
    # from nothing, as the first query of a visit
    page.fill("#query", "")
    page.wait_for_function("() => !document.querySelector('#results button.card')")
    with page.expect_response(lambda response: "/v1/search" in response.url) as answered:
        page.locator("#query").press_sequentially(words, delay=45)
        page.wait_for_function("() => window.bench.picture > 0")
    bench = page.evaluate("window.bench")
    took = answered.value.json()["took_ms"]
    return {"hits_ms": bench["hits"], "picture_ms": bench["picture"], "service_ms": took}


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.median(values)), 1),
        "p95": round(float(np.percentile(values, 95)), 1),
        "max": round(max(values), 1),
    }


def main() -> None:
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests / "support")]
    import browsing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", help="an index to serve")
    parser.add_argument("--url", help="a service that runs already")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.url
        if url is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            indexes = [options.index] if options.index else browsing.build_indexes(root)[:1]
            url = stack.enter_context(browsing.service(indexes, root / "log"))
        browser = stack.enter_context(browsing.chromium())
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(url)
        page.evaluate(WATCH)
        measure(page, QUERIES[0])
        runs = [measure(page, words) for _ in range(options.rounds) for words in QUERIES]
        known = page.evaluate("fetch('/v1/index').then((answer) => answer.json())")
        report = {
            "bench": "page",
            "index": {"images": known["images"], "texts": known["texts"], "model": known["model"]},
            "runs": len(runs),
            **{name: summary([run[name] for run in runs]) for name in runs[0]},
            "under_300_ms": round(sum(run["hits_ms"] < 300 for run in runs) / len(runs), 3),
            "browser": f"chromium {browser.version}",
            "machine": platform.machine(),
        }
    for name in ("service_ms", "hits_ms", "picture_ms"):
        print(f"{name:<12} {report[name]}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
