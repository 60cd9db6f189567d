"""Overload, hot swap and drain against real processes: the benchmark's scenarios, in seconds."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from indexes import build, record
from pacing import paced_server
from scenarios import drain, overload, ready, slow, small_index, swaps


def test_five_times_too_many(tmp_path: Path) -> None:
    figures = overload(tmp_path, took=0.02, factor=5, seconds=3, calm_s=3)
    assert set(figures["by_status"]) == {"200", "429"}
    assert figures["retry_after_on_all"]
    assert figures["problem_on_all"]
    # the figure to reach, 0.9, is the benchmark's: here the machine may be busy with other tests
    assert figures["goodput_of_peak"] > 0.5
    assert figures["rss_growth_mib"] < 100
    assert "429" not in figures["after"]["by_status"] or figures["recovered_after_s"] < 5


def test_swaps_under_load_lose_and_tear_nothing(tmp_path: Path) -> None:
    figures = swaps(tmp_path, count=4, rate=30, calm_s=1)
    assert set(figures["by_status"]) == {"200"}
    assert figures["answers_of_two_versions"] == 0
    assert figures["last_version"] == 5
    assert figures["files_after"] <= figures["files_before"] + 40


def test_sigterm_with_fifty_under_way(tmp_path: Path) -> None:
    figures = drain(tmp_path, in_flight=50, took=0.02)
    assert figures["in_flight"] > 10
    assert figures["resets"] == 0
    assert figures["statuses"] == [200]
    assert figures["readyz_meanwhile"] == 503
    assert figures["exit_code"] == 0
    assert figures["closed_with_the_answer"] >= figures["in_flight"] / 2


def test_a_hundred_slow_clients_of_each_kind(tmp_path: Path) -> None:
    assert slow(tmp_path, count=100, seconds=2, calm_s=1)["honest_failures"] == 0


def test_the_first_answer_comes_as_soon_as_the_address_is_told(tmp_path: Path) -> None:
    figures = ready(tmp_path, small_index(tmp_path / "small.index"))
    assert figures["status"] == 200
    assert figures["answered_s"] - figures["announced_s"] < 5


def test_what_is_not_done_in_time_is_503(tmp_path: Path) -> None:
    index = small_index(tmp_path / "small.index")
    more = ("--timeout", "60", "--drain", "0.5")
    with paced_server(index, tmp_path / "log", 1.5, *more) as (process, announced):
        body = json.dumps({"text": "red"}).encode()
        request = Request(
            announced["url"] + "/v1/search/text-to-image",
            body,
            {"Content-Type": "application/json"},
        )
        seen: list[tuple[int, str | None]] = []

        def ask() -> None:
            try:
                with urlopen(request, timeout=30) as response:
                    seen.append((response.status, None))
            except HTTPError as error:
                with error:
                    seen.append((error.code, error.headers["Retry-After"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        process.wait(30)
    assert {status for status, _ in seen} == {503}
    assert all(retry is not None and retry.isdigit() for _, retry in seen)


def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    index = small_index(tmp_path / "small.index")
    with paced_server(index, tmp_path / "log", 0) as (process, _):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None, "it waits to be seen as not ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_a_damaged_version_and_another_pairs_are_refused_and_told_once(tmp_path: Path) -> None:
    index = small_index(tmp_path / "small.index")
    log = tmp_path / "log"
    more = ("--poll", "0.1", "--metrics-port", "0", "--log-format", "json")
    with paced_server(index, log, 0, *more) as (_, announced):
        good = (index / "CURRENT").read_text()
        number = int(good.split()[0])
        # a manifest that is not what CURRENT says
        (index / "CURRENT.new").write_text(f"{number + 1} {'0' * 64}\n")
        (index / "CURRENT.new").replace(index / "CURRENT")
        time.sleep(1.0)
        with urlopen(announced["url"] + "/v1/index", timeout=20) as response:
            assert response.headers["Index-Version"] == str(number)
        (index / "CURRENT.new").write_text(good)
        (index / "CURRENT.new").replace(index / "CURRENT")
        build([record("one more", "blue")], index)
        deadline = time.monotonic() + 20
        version = number
        while version == number and time.monotonic() < deadline:
            with urlopen(announced["url"] + "/v1/index", timeout=20) as response:
                version = int(response.headers["Index-Version"])
            time.sleep(0.05)
        assert version == number + 1
        with urlopen(announced["metrics_url"], timeout=20) as response:
            metrics = response.read().decode()
    assert 'diptych_index_swaps_total{index="small",outcome="refused"} 1.0' in metrics
    assert 'diptych_index_swaps_total{index="small",outcome="ok"} 1.0' in metrics
    assert f'diptych_index_version{{index="small"}} {number + 1:.1f}' in metrics
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines]
    assert events.count("index-refused") == 1
    assert events.count("index-swapped") == 1
