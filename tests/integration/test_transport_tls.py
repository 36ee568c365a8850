"""TLS: who is trusted, and what a refusal says."""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from batchchat.errors import UsageError
from batchchat.transport import LeanTransport, StockTransport, request_sent, tls_context
from tests.integration.raw_server import COMPLETION, Peer, RawServer, always, response, server_context
from tests.integration.transport_cases import BACKENDS, ask, ask_seam, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def trusting(ca_file: Path) -> ssl.SSLContext:
    return tls_context(ca_file)


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority.issue_cert("localhost"))


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server context whose certificate vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "self.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_a_certificate_of_ones_own_authority_is_good_and_the_server_is_told_which_name_is_meant(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext
) -> None:
    names: list[str | None] = []
    certificate.sni_callback = lambda _socket, name, _context: names.append(name)
    with RawServer(always(response()), tls=certificate) as server:
        async with LeanTransport(verify=trusting) as transport:
            for way in (ask, ask_seam):
                assert (await way(transport, server.url)).body == COMPLETION
        assert names == ["localhost"]
        assert server.connections == 1
        await until(lambda: server.open == 0)


async def test_many_at_once_and_a_big_body_go_through_tls(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext
) -> None:
    body = bytes(range(256)) * 8_000
    with RawServer(always(response(b"x" * 700_000)), tls=certificate) as server:
        async with LeanTransport(verify=trusting) as transport:

            async def one() -> None:
                assert (await ask(transport, server.url, body)).body == b"x" * 700_000

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(one)
        assert all(request.endswith(body) for request in server.received)


def _expired(authority: trustme.CA, _folder: Path) -> ssl.SSLContext:
    past = datetime.now(UTC) - timedelta(days=1)
    return server_context(authority.issue_cert("localhost", not_before=past - timedelta(days=9), not_after=past))


REFUSED: dict[str, tuple[Callable[[trustme.CA, Path], ssl.SSLContext], str]] = {
    "self-signed": (lambda _authority, folder: self_signed(folder), "CERTIFICATE_VERIFY_FAILED.*self.signed"),
    "unknown authority": (
        lambda _authority, _folder: server_context(trustme.CA().issue_cert("localhost")),
        "CERTIFICATE_VERIFY_FAILED.*unable to get local issuer certificate",
    ),
    "expired": (_expired, "CERTIFICATE_VERIFY_FAILED.*certificate has expired"),
    "another host's": (
        lambda authority, _folder: server_context(authority.issue_cert("other.example")),
        "CERTIFICATE_VERIFY_FAILED.*[Hh]ostname mismatch.*localhost",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_certificate_that_does_not_prove_the_host_is_refused_before_anything_is_sent(
    name: str, authority: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    make, text = REFUSED[name]
    with RawServer(always(response()), tls=make(authority, tmp_path)) as server:
        async with LeanTransport(verify=trusting) as transport, StockTransport(verify=trusting) as stock:
            for asked in (ask(transport, server.url), ask_seam(transport, server.url), ask_seam(stock, server.url)):
                with pytest.raises(httpx.ConnectError, match=text) as caught:
                    await asked
                assert not request_sent(caught.value)
        assert server.received == []


async def test_a_server_without_tls_is_no_tls_server(trusting: ssl.SSLContext) -> None:
    async def answer_anything(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)

    with RawServer(answer_anything) as server:
        async with LeanTransport(verify=trusting) as transport:
            with pytest.raises(httpx.ConnectError, match=r"TLS with localhost:.* failed") as caught:
                await ask(transport, f"https://localhost:{server.port}")
            assert not request_sent(caught.value)


async def _close(peer: Peer) -> None:
    await peer.reader.read(10)


async def _reset(peer: Peer) -> None:
    await peer.reader.read(10)
    await peer.reset()


@pytest.mark.parametrize("script", [_close, _reset])
async def test_a_connection_that_breaks_in_the_handshake_was_never_sent(script: Any, trusting: ssl.SSLContext) -> None:
    with RawServer(script) as server:
        async with LeanTransport(verify=trusting) as transport:
            with pytest.raises(httpx.ConnectError) as caught:
                await ask(transport, f"https://localhost:{server.port}")
            assert not request_sent(caught.value)
            assert transport.connections == 0


async def test_a_handshake_that_does_not_end_ends_in_a_connect_timeout(trusting: ssl.SSLContext) -> None:
    with RawServer(Peer.gone) as server:
        async with LeanTransport(verify=trusting, connect_timeout=0.1) as transport:
            with pytest.raises(httpx.ConnectTimeout) as caught:
                await ask(transport, f"https://localhost:{server.port}")
            assert not request_sent(caught.value)
            await until(lambda: server.open == 0)


async def test_giving_up_in_the_handshake_leaves_no_connection(trusting: ssl.SSLContext) -> None:
    with RawServer(Peer.gone) as server:
        async with LeanTransport(verify=trusting) as transport:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, transport, f"https://localhost:{server.port}")
                await until(lambda: server.connections == 1)
                tasks.cancel_scope.cancel()
            await until(lambda: server.open == 0)


async def test_an_answer_that_is_cut_off_is_never_taken_for_a_whole_one(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response()[:-9])
        peer.writer.transport.abort()  # no farewell of TLS

    with RawServer(script, tls=certificate) as server:
        async with LeanTransport(verify=trusting) as transport:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError), match="after 222 of 231 bytes") as caught:
                await ask(transport, server.url)
            assert request_sent(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="stands on how Linux's TCP behaves")
async def test_a_request_that_a_stale_connection_did_not_deliver_is_sent_once_more(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext
) -> None:
    close = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(response())
            if peer.number == 0:
                await close.wait()
                peer.writer.close()  # TLS's farewell, whose answer is not waited for
                await asyncio.sleep(0.01)
                peer.writer.transport.abort()
                return

    with RawServer(script, tls=certificate) as server:
        async with LeanTransport(verify=trusting) as transport:
            await ask(transport, server.url)
            server.close_behind_the_back(close)
            assert (await ask(transport, server.url)).body == COMPLETION
        assert len(server.received) == 2
        assert server.connections == 2


def _transport(kind: str, trusting: ssl.SSLContext) -> LeanTransport | StockTransport:
    return LeanTransport(verify=trusting) if kind == "lean" else StockTransport(verify=trusting)


@pytest.mark.parametrize("kind", ["lean", "httpx"])
@pytest.mark.parametrize("apart", [False, True], ids=["in one write", "later"])
async def test_an_answer_that_nobody_asked_for_is_not_given_to_the_next_request(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext, kind: str, apart: bool
) -> None:
    more, sent = asyncio.Semaphore(0), threading.Semaphore(0)

    async def script(peer: Peer) -> None:
        while True:
            own = response(body=(await peer.request()).rpartition(b"\r\n\r\n")[2])
            await peer.send(own if apart else own + response(body=b"unasked"))
            if apart:
                await more.acquire()
                try:
                    await peer.send(response(body=b"unasked"))
                finally:
                    sent.release()  # a client that has ended the connection is sent nothing

    with RawServer(script, tls=certificate) as server:
        async with _transport(kind, trusting) as transport:
            for number in range(4):
                body = b"row %d" % number
                assert (await ask_seam(transport, server.url, body)).body == body
                if apart:
                    server.call(more.release)
                    assert sent.acquire(timeout=10)  # the loop does not look meanwhile
        assert server.connections == 4


@pytest.mark.parametrize("kind", ["lean", "httpx"])
@pytest.mark.parametrize("farewell", [True, False], ids=["with a farewell", "without"])
async def test_a_kept_connection_that_the_server_has_ended_costs_no_failure(
    trusting: ssl.SSLContext, certificate: ssl.SSLContext, kind: str, farewell: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response())
        if farewell:
            peer.writer.close()
        else:
            peer.writer.transport.abort()

    with RawServer(script, tls=certificate) as server:
        async with _transport(kind, trusting) as transport:
            for _ in range(4):
                assert (await ask_seam(transport, server.url)).body == COMPLETION
                time.sleep(0.02)  # noqa: ASYNC251  # the loop does not look meanwhile
        assert (server.connections, len(server.received)) == (4, 4)


def test_a_ca_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.pem cannot be read"):
        tls_context(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=r"empty\.pem holds no certificate"):
        tls_context(tmp_path / "empty.pem")


def test_the_environments_authorities_stand_in_place_of_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch, ca_file: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert tls_context().cert_store_stats()["x509_ca"] > 50
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(ca_file.parent / "none"))
    assert tls_context().cert_store_stats()["x509_ca"] == 1
    context = tls_context(ca_file)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
