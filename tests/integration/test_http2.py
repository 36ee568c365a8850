"""HTTP/2: chosen by the job, carried by httpx's own transport, many requests over one connection."""

from __future__ import annotations

import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from tests.integration.jobs import make_job, query, run, texts, write_rows
from tests.integration.raw_server import COMPLETION, Peer, RawServer, server_context


class Http2:
    """Answers every request with a completion, and remembers the pseudo-header fields of each."""

    def __init__(self) -> None:
        self.asked: list[dict[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.most_at_once = 0

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        speaker = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        speaker.initiate_connection()
        peer.writer.write(speaker.data_to_send())
        open_streams: dict[int, bytes] = {}
        while data := await peer.reader.read(65536):
            ended = []
            for event in speaker.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    open_streams[event.stream_id] = b""
                    self.asked.append(dict(event.headers))
                elif isinstance(event, h2.events.DataReceived):
                    open_streams[event.stream_id] += event.data
                    speaker.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.append(event.stream_id)
            self.most_at_once = max(self.most_at_once, len(open_streams))
            for stream in ended:
                self.bodies.append(open_streams.pop(stream))
                fields = [(":status", "200"), ("content-type", "application/json")]
                speaker.send_headers(stream, [*fields, ("content-length", str(len(COMPLETION)))])
                speaker.send_data(stream, COMPLETION, end_stream=True)
            peer.writer.write(speaker.data_to_send())
            await peer.writer.drain()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context that speaks HTTP/2, and the file of its authority."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = server_context(ca.issue_cert("localhost", "127.0.0.1"))
    context.set_alpn_protocols(["h2"])
    return context, tmp_path / "ca.pem"


def test_a_run_over_http2_shares_one_connection(tmp_path: Path, authority: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = authority
    write_rows(tmp_path / "rows.jsonl", texts(40))
    script = Http2()
    with RawServer(script, tls=context) as server:
        provider = {"base_url": f"{server.url}/v1", "ca_file": str(ca_file), "transport": "http2"}
        summary = run(make_job(tmp_path, None, provider=provider))
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 40, 40)
    assert script.connections == 1
    assert len(script.asked) == len(script.bodies) == 40
    assert {fields[b":path"] for fields in script.asked} == {b"/v1/chat/completions"}
    assert all(b"row number" in body for body in script.bodies)
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(40, 40)]
