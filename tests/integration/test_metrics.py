"""Metrics of real runs: scraped over HTTP, left in a file, pushed to a collector; and what is refused before a run."""

from __future__ import annotations

import importlib.util
import re
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from batchchat.errors import UsageError
from batchchat.evaluation.evaluate import evaluate
from batchchat.events import Event, FailureGroup, Pace, Snapshot
from batchchat.metrics import Recorder, RunMeter, open_metrics
from batchchat.metrics.figures import families, prometheus_name
from batchchat.metrics.otlp import OtlpPush
from batchchat.metrics.targets import read_address
from batchchat.records import Spend
from batchchat.runner.run import run_job
from tests.integration.jobs import ROOT, make_job, texts, write_rows
from tests.integration.processes import batchchat, start
from tests.integration.suites import Bench, on_virtual_clock
from tests.integration.suites import Provider as EvalProvider
from tests.unit.test_run_clock import Provider, answer, inline, row_of

PAGE = ROOT / "batchchat" / "guide" / "metrics.md"
SNAPSHOT = Snapshot(
    run_id="r",
    job="a \"job\"\nof 'two' lines",
    phase="paused",
    elapsed_s=2.0,
    total=10,
    ok=5,
    failed=2,
    done_before=3,
    sending=4,
    attempts=9,
    retries=1,
    rate_limited=1,
    spend=Spend(7, 100, 20, 120, 30, 5, 0.5),
    currency="EUR",
    failures=(FailureGroup("timeout", 2, "x"),),
    pace=Pace(requests_per_minute=60.0, concurrency=8, requests_used=9.0, in_use=4),
    eta_s=12.0,
)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what Prometheus's own parser reads, by name and labels without `job`."""
    return {
        (sample.name, tuple(sorted((name, value) for name, value in sample.labels.items() if name != "job"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body.decode()


def asked(folder: Path, recorder: Recorder, rows: int, on_snapshot: Callable[[Snapshot], None]) -> int:
    """Run rows, of which each fifth is refused for good, with a meter; return the exit code."""

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.005)
        if row_of(request) % 5 == 0:
            return httpx.Response(400, json={"error": {"message": "no"}})
        return answer("yes")

    write_rows(folder / "rows.jsonl", texts(rows))
    job = make_job(folder, None, prices={"input": 1.0, "output": 1.0, "currency": "EUR"})
    meter = recorder.meter(job.name, "demo", job.model)

    async def main() -> int:
        summary = await run_job(
            job,
            transport=Provider(handler),
            offload=inline,
            environ={},
            on_snapshot=meter.beside(on_snapshot),
            on_record=meter.add,
            tick_s=0.02,
        )
        recorder.end(summary.exit_code)
        return summary.exit_code

    return anyio.run(main)


def test_a_scrape_reads_a_running_run_and_the_file_keeps_its_last_values(tmp_path: Path) -> None:
    events: list[Event] = []
    scraped: list[str] = []
    file = tmp_path / "run.prom"
    with open_metrics(["127.0.0.1:0", str(file)], events.append) as recorder:
        url = str(events[0].fields["url"])
        assert (events[0].name, url.endswith("/metrics")) == ("metrics_served", True)
        assert "batchchat" not in scrape(url)

        def on_snapshot(snapshot: Snapshot) -> None:
            if snapshot.ok > 10 and not scraped:
                scraped.append("")
                # Another thread scrapes, as a server does, while the run goes on.
                threading.Thread(target=lambda: scraped.append(scrape(url))).start()

        code = asked(tmp_path, recorder, 200, on_snapshot)
        final = samples(scrape(url))
    assert code == 1
    middle = samples(scraped[1])
    assert 10 < middle["batchchat_rows_total", (("outcome", "ok"),)] <= 160
    assert ("batchchat_exit_code", ()) not in middle
    assert final["batchchat_rows_total", (("outcome", "ok"),)] == 160
    assert final["batchchat_rows_total", (("outcome", "failed"),)] == 40
    assert final["batchchat_failures_total", (("kind", "invalid_request"),)] == 40
    assert final["batchchat_requests_total", ()] == 200
    assert final["batchchat_answers_total", ()] == 160
    assert final["batchchat_tokens_total", (("type", "input"),)] == 1600
    assert final["batchchat_cost_total", (("currency", "EUR"),)] == pytest.approx(0.00176)
    assert (final["batchchat_in_flight", ()], final["batchchat_uncommitted", ()]) == (0, 0)
    assert final["batchchat_pass_rows", ()] == 200
    assert final["batchchat_exit_code", ()] == 1
    ok = (("model", "m"), ("outcome", "ok"))
    assert final["batchchat_duration_seconds_count", ok] == 160
    assert final["batchchat_duration_seconds_bucket", (("le", "+Inf"), *ok)] == 160
    assert 0.005 * 160 <= final["batchchat_duration_seconds_sum", ok] < 100
    assert final["batchchat_row_tokens_sum", (*ok, ("type", "output"))] == 160
    assert final["batchchat_duration_seconds_count", (("model", ""), ("outcome", "invalid_request"))] == 40
    assert samples(file.read_text(encoding="utf-8")) == final
    # For a collector that runs as another user.
    assert stat.S_IMODE(file.stat().st_mode) & 0o044
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["run.prom"]
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def test_figures_escape_labels_and_leave_out_what_is_not_known(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    with open_metrics([str(file)], lambda _event: None) as recorder:
        recorder.meter(SNAPSHOT.job, "demo", "m", "short prompt").update(SNAPSHOT)
        recorder.meter("not begun", "demo", "m")
    text = file.read_text(encoding="utf-8")
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels["job"] for sample in found} == {SNAPSHOT.job, "not begun"}
    paused = next(sample for sample in found if sample.name == "batchchat_paused")
    assert (paused.labels["variant"], paused.value) == ("short prompt", 1)
    limits = {sample.labels["limit"] for sample in found if sample.name == "batchchat_limit"}
    assert limits == {"requests_per_minute", "concurrency"}
    assert not [sample for sample in found if sample.name in {"batchchat_exit_code", "batchchat_budget_used"}]


def test_the_page_names_every_figure() -> None:
    recorder = Recorder()
    recorder.meter("j", "p", "m").update(SNAPSHOT)
    told = re.findall(r"^\| `(batchchat_\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == [(prometheus_name(family), family.kind) for family in families(recorder)]


def test_models_that_change_with_each_answer_take_no_memory() -> None:
    meter = RunMeter("j", "p", "m")
    for number in range(500):
        record: Any = SimpleNamespace(
            cache_hit=False, attempts=1, model=f"m{number}", error_kind=None, latency_s=1.0, prompt_tokens=1,
            completion_tokens=None,
        )  # fmt: skip
        meter.add(record)
    assert len(meter.answers()) == 65
    assert sum(sum(answers.duration_s.counts()) for answers in meter.answers()) == 500


@pytest.mark.parametrize(
    ("text", "found"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:1", ("::1", 1)), ("localhost:0", ("localhost", 0))],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert read_address(text) == found


@pytest.mark.parametrize("text", ["", "9464", ":9464", "host", "host:", "host:port", "host:65536", "::1:80", "a.txt"])
def test_what_is_no_target_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics") as error, open_metrics([text], lambda _event: None):
        pass
    assert "127.0.0.1:9464" in (error.value.remedy or "")


def test_another_address_than_loopback_is_warned_about() -> None:
    events: list[Event] = []
    with open_metrics(["0.0.0.0:0"], events.append):
        pass
    assert [event.name for event in events] == ["metrics_served", "warning"]
    assert "everybody" in events[1].message


@pytest.mark.parametrize(("target", "extra"), [("127.0.0.1:0", "metrics"), ("x.prom", "metrics"), ("otlp", "otel")])
def test_without_its_extra_a_target_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, target: str, extra: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as error, open_metrics([target], lambda _event: None):
        pass
    assert error.value.exit_code == 2
    assert error.value.remedy == f"pip install 'batchchat[{extra}]'"


def test_nothing_is_imported_that_is_not_used() -> None:
    script = (
        "import sys; import batchchat.cli.running as running; import batchchat.metrics\n"
        "with running.recorder_of((), None): pass\n"
        "print([name for name in sys.modules if name.startswith(('prometheus_client', 'opentelemetry'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_target_that_cannot_be_had_ends_the_command_before_anything_is_sent(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    job = make_job(tmp_path, None).model_dump_json(exclude_unset=True, by_alias=True)
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = batchchat("run", "job.yaml", "--metrics", address, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--metrics {address}: cannot listen there" in done.stderr
    with (
        pytest.raises(UsageError, match=r"nowhere/run\.prom: cannot be written"),
        open_metrics(["nowhere/run.prom"], lambda _event: None),
    ):
        pass
    assert not (tmp_path / "out").exists()


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OpenTelemetry collector: takes what is pushed, and answers with this status."""
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_is_given_the_figures_and_those_of_the_conventions(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    job = make_job(tmp_path, None).model_dump_json(exclude_unset=True, by_alias=True)
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    with collector() as (endpoint, taken):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "200"}
        process = start("run", "job.yaml", "-q", "--metrics", "otlp", cwd=tmp_path, env=env)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert {path for path, _ in taken} == {"/v1/metrics"}
    pushed = ExportMetricsServiceRequest.FromString(taken[-1][1]).resource_metrics[0]
    resource = {each.key: each.value.string_value for each in pushed.resource.attributes}
    assert resource["service.name"] == "batchchat"
    metrics = {metric.name: metric for metric in pushed.scope_metrics[0].metrics}
    rows = {
        next(each.value.string_value for each in point.attributes if each.key == "outcome"): point.as_double
        for point in metrics["batchchat.rows"].sum.data_points
    }
    assert (rows, metrics["batchchat.rows"].sum.is_monotonic) == ({"ok": 12, "failed": 0}, True)
    assert metrics["batchchat.exit_code"].gauge.data_points[0].as_double == 0
    assert metrics["batchchat.commit.lag"].unit == "s"
    usage, duration = metrics["gen_ai.client.token.usage"], metrics["gen_ai.client.operation.duration"]
    assert (usage.unit, duration.unit) == ("{token}", "s")
    attributes = {each.key: each.value.string_value for each in duration.histogram.data_points[0].attributes}
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "demo",
        "gen_ai.request.model": "llama-3.1-8b-instruct",
        "gen_ai.response.model": "llama-3.1-8b-instruct",
        "batchchat.job": "test",
    }
    point = duration.histogram.data_points[0]
    assert (point.count, sum(point.bucket_counts), len(point.explicit_bounds)) == (12, 12, 14)
    assert 0 < point.min <= point.sum / 12 <= point.max
    kinds = {
        each.value.string_value
        for point in usage.histogram.data_points
        for each in point.attributes
        if each.key == "gen_ai.token.type"
    }
    assert kinds == {"input", "output"}


@pytest.mark.parametrize("status", [400, None], ids=["refuses", "is away"])
def test_a_collector_that_takes_nothing_is_told_once(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    events: list[Event] = []
    with collector(status or 200) as (endpoint, _):
        pass
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "150")
    with collector(status or 200) as (other, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", other if status else endpoint)
        recorder = Recorder()
        with OtlpPush(recorder, events.append, timeout_s=0.2):
            recorder.meter("j", "p", "m").update(SNAPSHOT)
            if status:
                while len(taken) < 3:
                    threading.Event().wait(0.01)
    assert [event.name for event in events] == ["warning"]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in events[0].message


def test_an_evaluation_tells_its_variants_apart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, EvalProvider(lambda _model, _text: "yes"))
    bench.rows({"id": number, "text": f"row {number}", "gold": "yes"} for number in range(6))
    suite = bench.suite()
    setting = bench.setting(suite)
    setting.metrics = Recorder()
    on_virtual_clock(lambda: evaluate(suite, setting))
    rows = next(family for family in families(setting.metrics) if family.name == "batchchat.rows")
    ok = {labels["variant"]: value for labels, value in rows.values if labels["outcome"] == "ok"}
    assert ok == {variant.name: 6 for variant in suite.variants}
    assert {labels["job"] for labels, _ in rows.values} == {"suite"}
