"""The demo provider over real sockets: what a client sees of it, and how it starts and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest
import trio
import trio.testing

from batchchat.demo import Demo, DemoOptions, DemoServer, create_app
from tests.thorough import one_in

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Given to clients so that they do not load certificates that no test here needs: that takes most of their time."""

MODEL = "llama-3.1-8b-instruct"
MISTRAL = "mistral-small-3.2-24b-instruct-2506"
LABELS = "Labels: billing, bug, feature_request, account, shipping, other. Answer with one label."


def body(text: str = "I was charged twice, please refund me.", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": LABELS}, {"role": "user", "content": text}]
    return {"model": MODEL, "temperature": 0, "messages": messages, **fields}


class Asking:
    """A client of one demo server, for these tests."""

    def __init__(self, server: DemoServer, client: httpx.Client) -> None:
        self.server = server
        self.client = client

    def ask(self, text: str = "I was charged twice, please refund me.", **fields: Any) -> httpx.Response:
        return self.send(body(text, **fields))

    def send(self, data: object, **more: Any) -> httpx.Response:
        return self.client.post("/chat/completions", json=data, **more)

    def events(self, text: str = "Where is my parcel?", **fields: Any) -> list[str]:
        response = self.ask(text, stream=True, **fields)
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


@contextmanager
def asking(*, key: str | None = None, **options: Any) -> Iterator[Asking]:
    options.setdefault("latency_s", 0.0)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with (
        DemoServer(DemoOptions(**options)) as server,
        httpx.Client(base_url=server.base_url, headers=headers, timeout=10, verify=NO_TLS) as client,
    ):
        yield Asking(server, client)


@pytest.fixture(scope="module")
def demo() -> Iterator[Asking]:
    with asking() as shared:
        yield shared


def message_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()["choices"][0]["message"]
    return message


def error_message(response: httpx.Response) -> str:
    """Read the message out of any of the three shapes, and nothing but these shapes."""
    data = response.json()
    if data.get("object") == "error":
        assert data.keys() == {"object", "message", "type", "param", "code"}
        return str(data["message"])
    if isinstance(data["error"], dict):
        assert data["error"].keys() == {"message", "type", "param", "code"}
        return str(data["error"]["message"])
    assert data.keys() == {"error", "status", "message"}
    assert data["status"] == response.status_code
    return str(data["message"])


def test_a_completion_looks_like_the_apis(demo: Asking) -> None:
    response = demo.ask()
    data = response.json()
    assert data["object"] == "chat.completion"
    assert data["id"].startswith("chatcmpl-")
    assert data["model"] == MODEL
    assert data["system_fingerprint"]
    assert abs(data["created"] - time.time()) < 60
    (choice,) = data["choices"]
    assert choice == {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": None,
        "message": {"role": "assistant", "content": "billing", "refusal": None, "tool_calls": []},
    }
    usage = data["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 2
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert response.headers["x-request-id"].startswith("req-")


def test_the_routes(demo: Asking) -> None:
    root = demo.server.base_url.removesuffix("/v1")
    assert demo.client.post(f"{root}/some-project/v1/chat/completions", json=body()).status_code == 200
    names = [model["id"] for model in demo.client.get("/models").json()["data"]]
    assert names == [MODEL, MISTRAL, "demo-small", "demo-large"]
    assert demo.client.get(f"{root}/health").json() == {"status": "ok"}
    wrong = demo.client.post("/completions", json=body())
    assert (wrong.status_code, error_message(wrong)) == (404, "there is no such route")
    assert demo.client.get("/chat/completions").status_code == 405


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"messages": []}, 422, "model is required"),
        (body(model="no-such-model"), 422, "does not exist"),
        ({"model": MODEL}, 400, "messages"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        ({"model": MODEL, "messages": [{"role": "user"}]}, 400, "content"),
        ({"model": MODEL, "messages": [{"role": "boss", "content": "x"}]}, 400, "role"),
        ([1, 2], 400, "object"),
        (body(temperature=3), 400, "temperature"),
        (body(top_p=-0.1), 400, "top_p"),
        (body(max_tokens=0), 400, "max_tokens"),
        (body(max_tokens=1.5), 400, "max_tokens"),
        (body(seed="one"), 400, "seed"),
        (body(stop=["a", "b", "c", "d", "e"]), 400, "stop"),
        (body(response_format={"type": "xml"}), 400, "response_format"),
        (body(response_format={"type": "json_schema"}), 400, "schema"),
        (body(tools=[]), 400, "tools"),
        (body(tool_choice={"type": "function", "function": {"name": "f"}}), 400, "tools"),
        *((body() | {name: 1}, 400, name) for name in ("frequency_penalty", "n", "top_logprobs", "logit_bias", "user")),
        (body(max_completion_tokens=1_000_000), 416, "max_completion_tokens"),
        (body("word " * 150_000), 400, "context"),
    ],
)
def test_what_is_refused(demo: Asking, data: Any, status: int, words: str) -> None:
    response = demo.send(data)
    assert response.status_code == status
    assert words in error_message(response)


def test_bad_json_is_400(demo: Asking) -> None:
    response = demo.client.post("/chat/completions", content=b'{"model": "')
    assert response.status_code == 400
    assert "JSON" in error_message(response)


def test_two_user_messages_in_a_row_are_400_on_mistral_alone(demo: Asking) -> None:
    messages = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    assert demo.send({"model": MISTRAL, "messages": messages}).status_code == 400
    assert demo.send({"model": MODEL, "messages": messages}).status_code == 200


def test_images_are_counted_and_never_fetched(demo: Asking) -> None:
    def pictures(count: int, url: str) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
        parts += [{"type": "image_url", "image_url": {"url": url}}] * count
        return {"model": MODEL, "messages": [{"role": "user", "content": parts}]}

    data_url = "data:image/png;base64,iVBORw0KGgo="
    assert "12 image" in message_of(demo.send(pictures(12, "https://no-such-host.invalid/a.png")))["content"]
    assert demo.send(pictures(13, data_url)).status_code == 400
    assert demo.send(pictures(1, "file:///etc/passwd")).status_code == 400
    one, two = (demo.send(pictures(n, data_url)).json()["usage"]["prompt_tokens"] for n in (1, 2))
    assert two > one


def test_a_missing_key_is_401_and_another_one_403_and_none_is_ever_echoed() -> None:
    key = "test-" + "canary" * 3
    with asking(api_key=key) as demo:
        without = demo.ask()
        other = demo.send(body(), headers={"authorization": "Bearer " + "another" * 4})
        right = demo.send(body(), headers={"authorization": f"Bearer {key}"})
        assert [r.status_code for r in (without, other, right)] == [401, 403, 200]
        root = demo.server.base_url.removesuffix("/v1")
        told = [
            demo.client.get(f"{root}{path}", headers={"authorization": f"Bearer {key}"})
            for path in (
                "/demo/stats",
                "/demo/bodies",
                "/health",
                "/nowhere",
                "/v1/models",
            )
        ]
        for response in (without, other, right, *told):
            everything = response.text + str(response.headers)
            assert "canary" not in everything
            assert "another" not in everything
    assert key not in repr(demo.server.options)


# Streaming


def test_a_stream_has_role_pieces_finish_usage_and_done(demo: Asking) -> None:
    whole = message_of(demo.ask("Tell me about my parcel", messages=[{"role": "user", "content": "Tell me"}]))
    events = demo.events(messages=[{"role": "user", "content": "Tell me"}], stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1])
    assert text[:9] == whole["content"][:9] == "You wrote"
    assert len(chunks) > 5
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_a_stream_without_include_usage_has_none(demo: Asking) -> None:
    chunks = [json.loads(event) for event in demo.events()[:-1]]
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_arrives_bit_by_bit() -> None:
    with (
        asking(latency_s=0.2) as demo,
        demo.client.stream(
            "POST", "/chat/completions", json=body(messages=[{"role": "user", "content": "Tell me"}], stream=True)
        ) as response,
    ):
        started = time.perf_counter()
        arrivals = [time.perf_counter() - started for _ in response.iter_raw()]
    assert len(arrivals) > 3
    assert arrivals[-1] - arrivals[0] > 0.02


class Listener:
    """One streaming request to a demo provider in memory, and when each piece of its answer came."""

    def __init__(self) -> None:
        asked = body(messages=[{"role": "user", "content": "Tell me"}], stream=True)
        asked["stream_options"] = {"include_usage": True}
        self.messages = [{"type": "http.request", "body": json.dumps(asked).encode()}]
        self.started = anyio.current_time()
        self.arrivals: list[float] = []
        self.pieces: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await anyio.sleep_forever()
        return self.messages.pop()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            self.arrivals.append(anyio.current_time() - self.started)
            self.pieces.append(message["body"])


def stream_times(**options: Any) -> tuple[float, float, int]:
    """Seconds to the first piece of an answer, from there to the last, and its tokens; on a virtual clock."""

    async def listen() -> tuple[float, float, int]:
        listener = Listener()
        await Demo(DemoOptions(**options))({"type": "http", "headers": []}, listener.receive, listener.send)
        first, last = listener.arrivals[0], listener.arrivals[-1]
        return first, last - first, json.loads(listener.pieces[-2][6:])["usage"]["completion_tokens"]

    found: tuple[float, float, int] = trio.run(listen, clock=trio.testing.MockClock(autojump_threshold=0))
    return found


def test_a_stream_begins_and_goes_on_at_the_pace_that_was_chosen() -> None:
    first, rest, tokens = stream_times(latency_s=0, ttft_s=2.0, tokens_per_s=10.0)
    assert 2 * 2**-0.6 <= first <= 2 * 2**0.6
    assert rest == pytest.approx(tokens / 10, rel=0.2)
    begun, rest, _ = stream_times(latency_s=1.0)
    assert 0 < begun < rest
    assert stream_times(latency_s=1.0, ttft_s=0.0)[0] == 0
    assert stream_times(latency_s=0)[:2] == (0, 0)


@pytest.mark.parametrize("options", [{"ttft_s": -1.0}, {"tokens_per_s": 0.0}, {"ttft_s": float("inf")}])
def test_an_impossible_pace_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DemoOptions(**options)  # type: ignore[arg-type]


def test_tool_calls_stream_in_pieces(demo: Asking) -> None:
    tool = {"type": "function", "function": {"name": "label", "parameters": LABEL_SCHEMA}}
    chunks = [json.loads(event) for event in demo.events(tools=[tool])[:-1]]
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "label"
    assert calls[0]["id"].startswith("call_")
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"label": "shipping", "order": None}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


# Structured output, tools, and the rest of the API

LABEL_SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["billing", "bug", "shipping"]},
        "order": {"type": ["string", "null"]},
    },
    "required": ["label", "order"],
    "additionalProperties": False,
}


def test_json_schema_is_filled_from_the_text(demo: Asking) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": LABEL_SCHEMA, "strict": True}}
    content = message_of(demo.ask("My parcel with order AB-4711 has not arrived", response_format=wanted))["content"]
    assert json.loads(content) == {"label": "shipping", "order": "AB-4711"}


def test_json_object_is_an_object(demo: Asking) -> None:
    content = message_of(demo.ask(response_format={"type": "json_object"}))["content"]
    assert json.loads(content) == {"label": "billing"}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "refund"}}])
def test_tools_are_called_with_arguments(demo: Asking, choice: object) -> None:
    tools = [
        {"type": "function", "function": {"name": "track", "description": "Find a parcel or a courier"}},
        {
            "type": "function",
            "function": {
                "name": "refund",
                "description": "Give money back for a charge",
                "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]},
            },
        },
    ]
    response = demo.ask("Please refund the charge of 49,90 €", tools=tools, tool_choice=choice)
    message = message_of(response)
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "refund"
    assert json.loads(call["function"]["arguments"]) == {"amount": 49.9}
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
    none = demo.ask("Please refund", tools=tools, tool_choice="none")
    assert message_of(none)["content"] == "billing"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_cuts(demo: Asking, name: str) -> None:
    data = demo.send(body() | {name: 1}).json()
    assert data["choices"][0]["message"]["content"] == "bill"
    assert data["choices"][0]["finish_reason"] == "length"
    assert data["usage"]["completion_tokens"] == 1


def test_stop_ends_the_answer_before_it(demo: Asking) -> None:
    data = demo.ask(stop=["lin", "zzz"]).json()
    assert data["choices"][0]["message"]["content"] == "bil"
    assert data["choices"][0]["finish_reason"] == "stop"


def test_logprobs_spell_the_answer(demo: Asking) -> None:
    entries = demo.ask(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "billing"
    assert all(entry["logprob"] <= 0 and bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)


def test_reasoning_comes_in_each_of_its_three_places(demo: Asking) -> None:
    response = demo.ask(reasoning_effort="low")
    assert "charg" in message_of(response)["reasoning_content"]
    assert response.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    chunks = [json.loads(event) for event in demo.events(reasoning_effort="low")[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("reasoning", "") for chunk in chunks)
    with asking(inline_reasoning=True) as inline:
        message = message_of(inline.ask(reasoning_effort="low"))
        assert "reasoning_content" not in message
        assert message["content"].startswith("<think>")
        assert message["content"].endswith("</think>\nbilling")


def test_an_answer_may_name_another_model() -> None:
    with asking(answer_as="successor-1") as demo:
        assert demo.ask().json()["model"] == "successor-1"


def test_an_unknown_model_may_be_404() -> None:
    with asking(unknown_model_status=404) as demo:
        assert demo.ask(model="gone").status_code == 404


# Determinism


def stable(response: httpx.Response) -> tuple[int, object]:
    data = response.json()
    data.pop("created", None)
    return response.status_code, data


def test_two_servers_give_the_same_answers_and_the_same_faults() -> None:
    faults = {"error_500": 0.2, "error_429": 0.2, "null_content": 0.2, "sticky_504": 0.2, "wrong_label": 0.1}

    def session(seed: int) -> list[tuple[int, object]]:
        with asking(seed=seed, faults=faults) as demo:
            texts = [f"Ticket {number}: refund, parcel or crash?" for number in range(12)]
            return [stable(demo.ask(text, temperature=0.7)) for text in texts for _ in range(3)]

    assert session(1) == session(1)
    assert session(1) != session(2)


# Faults


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416, 422, 429, 500, 503, 504])
def test_an_error_fault_answers_with_its_status(status: int) -> None:
    with asking(faults={f"error_{status}": 1}) as demo:
        response = demo.ask()
        assert response.status_code == status
        assert error_message(response)
        assert demo.server.stats().faults == {f"error_{status}": 1}
        assert demo.server.stats().answered == 0


def test_errors_come_in_all_three_shapes() -> None:
    with asking(faults={"error_500": 1}) as demo:
        shapes = Counter(
            "flat" if data.get("object") == "error" else type(data["error"]).__name__
            for data in (demo.ask(f"ticket {number}").json() for number in range(40))
        )
    assert shapes.keys() == {"flat", "dict", "str"}


def test_a_429_fault_is_about_each_of_the_axes() -> None:
    with asking(faults={"error_429": 1}) as demo:
        messages = {error_message(demo.ask(f"ticket {number}")) for number in range(40)}
    assert len(messages) == 3
    assert any("concurrent" in message for message in messages)


def test_quota_says_so_in_its_type() -> None:
    with asking(faults={"quota": 1}) as demo:
        for number in range(8):
            response = demo.ask(f"ticket {number}")
            data = response.json()
            error = data if data.get("object") == "error" else data["error"]
            assert (response.status_code, error["type"]) == (429, "insufficient_quota")


def malformed(response: httpx.Response) -> bool:
    try:
        response.json()
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("html", lambda r: r.headers["content-type"].startswith("text/html") and "<html" in r.text),
        ("error_200", lambda r: isinstance(r.json()["error"], dict) and "choices" not in r.json()),
        ("no_choices", lambda r: r.json()["choices"] == [] and r.json()["usage"]["total_tokens"] > 0),
        ("null_content", lambda r: message_of(r)["content"] is None and message_of(r)["refusal"] is None),
        ("no_usage", lambda r: "usage" not in r.json() and message_of(r)["content"] == "billing"),
        ("truncated_json", malformed),
        (
            "empty_whitespace",
            lambda r: message_of(r)["content"].strip() == "" and r.json()["choices"][0]["finish_reason"] == "length",
        ),
        ("wrong_label", lambda r: message_of(r)["content"] in LABELS and message_of(r)["content"] != "billing"),
        ("invalid_output", lambda r: message_of(r)["content"] not in LABELS),
        ("fenced", lambda r: "```\nbilling\n```" in message_of(r)["content"]),
        (
            "cut_off",
            lambda r: message_of(r)["content"] == "bil" and r.json()["choices"][0]["finish_reason"] == "length",
        ),
        ("refusal", lambda r: message_of(r)["content"] is None and message_of(r)["refusal"]),
        ("content_filter", lambda r: r.json()["choices"][0]["finish_reason"] == "content_filter"),
    ],
)
def test_a_fault_that_looks_like_success(fault: str, check: Callable[[httpx.Response], bool]) -> None:
    with asking(faults={fault: 1}) as demo:
        response = demo.ask()
        assert response.status_code == 200
        assert check(response)


@pytest.mark.parametrize(("fault", "corrected"), [("misfit", False), ("misfit_once", True)])
@pytest.mark.parametrize("with_tool", [False, True])
def test_json_that_does_not_fit_until_it_is_asked_for_again(fault: str, corrected: bool, with_tool: bool) -> None:
    labels = ["billing", "bug", "shipping"]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"label": {"enum": labels}, "urgent": {"type": "boolean"}},
        "required": ["label", "urgent"],
    }
    tool = {"type": "function", "function": {"name": "sort", "parameters": schema}}
    wanted: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": schema}}
    fields = {"tools": [tool]} if with_tool else {"response_format": wanted}
    question = {"role": "user", "content": "My invoice is wrong, a refund please"}

    def answer(*messages: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        message = message_of(asked.ask(messages=[question, *messages], **fields))
        text = message["tool_calls"][0]["function"]["arguments"] if with_tool else message["content"]
        return message, json.loads(text)

    with asking(faults={fault: 1}) as asked:
        said, value = answer()
        assert (value["label"] not in labels, "urgent" in value) == (True, False)
        told = f"The call was not made. It is not valid:\n- $.label: {value['label']} is not one of the labels"
        if with_tool:
            call = said["tool_calls"][0]
            more = [said, {"role": "tool", "tool_call_id": call["id"], "content": told}]
        else:
            more = [said, {"role": "user", "content": told.replace("The call was not made. It", "Your answer")}]
        _, again = answer(*more)
        assert (again["label"] in labels, "urgent" in again) == (corrected, corrected)
        assert asked.server.stats().faults == {fault: 1 if corrected else 2}


@pytest.mark.parametrize("stream", [False, True])
def test_a_dropped_connection(stream: bool) -> None:
    with asking(faults={"drop": 1}) as demo:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            demo.ask(stream=stream)
        assert demo.server.stats().dropped == 1
        assert demo.server.stats().by_status == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_cut_in_mid_body(stream: bool) -> None:
    with asking(faults={"drop_body": 1}) as demo:
        with demo.client.stream("POST", "/chat/completions", json=body(stream=stream)) as response:
            assert response.status_code == 200
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                response.read()
        assert demo.server.stats().answered == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_cut_before_the_usage(stream: bool) -> None:
    with asking(faults={"stream_cut": 1}) as demo:
        pieces: list[bytes] = []
        asked = {**body(stream=stream), "stream_options": {"include_usage": True}}
        with (
            demo.client.stream("POST", "/chat/completions", json=asked) as response,
            pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
        ):
            pieces.extend(response.iter_raw())
        received = b"".join(pieces)
        assert (b'"finish_reason":"stop"' in received, b'"usage":{' in received) == (stream, False)
        assert demo.server.stats().answered == 0


def test_an_error_in_mid_stream() -> None:
    with asking(faults={"stream_error": 1}) as demo:
        events = demo.events()
        assert "choices" in json.loads(events[0])
        assert json.loads(events[-1])["error"]["code"] == 500
        assert demo.ask().status_code == 500


def test_a_stream_that_ends_without_done() -> None:
    with asking(faults={"truncated_json": 1}) as demo:
        events = demo.events()
        assert events[-1] != "[DONE]"
        assert demo.server.stats().answered == 0


def test_a_hanging_request_ends_when_its_client_leaves() -> None:
    with asking(faults={"hang": 1}) as demo:
        with pytest.raises(httpx.ReadTimeout):
            demo.send(body(), timeout=0.1)
        wait_until(lambda: demo.server.stats().disconnected == 1)
        assert demo.server.stats().in_flight == 0


def test_a_passing_fault_passes_and_a_sticky_one_stays() -> None:
    with asking(faults={"error_503": 0.5}) as demo:
        outcomes = [[demo.ask(f"ticket {n}").status_code for _ in range(12)] for n in range(12)]
        assert all(200 in statuses for statuses in outcomes)
        assert any(503 in statuses for statuses in outcomes)
    with asking(faults={"sticky_500": 0.5}) as demo:
        outcomes = [[demo.ask(f"ticket {n}").status_code for _ in range(4)] for n in range(12)]
        assert all(len(set(statuses)) == 1 for statuses in outcomes)
        assert {statuses[0] for statuses in outcomes} == {200, 500}


@pytest.mark.parametrize(("fault", "status"), [("revoke_after", 401), ("quota_after", 429)])
def test_a_counted_fault_begins_after_so_many_requests(fault: str, status: int) -> None:
    with asking(faults={fault: 2}) as demo:
        statuses = [demo.ask(f"ticket {number}").status_code for number in range(4)]
    assert statuses == [200, 200, status, status]


def test_an_outage_begins_and_ends() -> None:
    with asking(outage=(0.0, 0.15)) as demo:
        assert demo.ask().status_code == 503
        time.sleep(0.2)
        assert demo.ask().status_code == 200


# Limits


def test_requests_are_limited_in_a_sliding_window() -> None:
    with asking(requests_per_minute=3, window_s=0.5) as demo:
        first = [demo.ask(f"ticket {number}") for number in range(4)]
        assert [r.status_code for r in first] == [200, 200, 200, 429]
        assert "requests per minute" in error_message(first[3])
        remaining = [r.headers["x-ratelimit-remaining-requests"] for r in first]
        assert remaining == ["2", "1", "0", "0"]
        assert first[0].headers["x-ratelimit-limit-requests"] == "3"
        assert first[3].headers["x-ratelimit-reset-requests"].endswith("ms")
        assert "x-ratelimit-limit-tokens" not in first[0].headers
        assert "retry-after" not in first[3].headers
        time.sleep(0.55)
        assert demo.ask("ticket 4").status_code == 200


def test_tokens_are_limited() -> None:
    with asking() as free:
        each = free.ask().json()["usage"]["total_tokens"]
    with asking(tokens_per_minute=2 * each + 1, retry_after=True, rate_headers=False) as demo:
        responses = [demo.ask() for _ in range(3)]
        assert [r.status_code for r in responses] == [200, 200, 429]
        assert "tokens per minute" in error_message(responses[2])
        assert 50 <= int(responses[2].headers["retry-after"]) <= 60
        assert not any("ratelimit" in name for r in responses for name in r.headers)
        assert "alone" in error_message(demo.ask("word " * 200))


def test_concurrency_is_limited_by_what_is_under_way() -> None:
    # Long enough for all six to come while the first two are under way, also on a busy machine.
    with asking(concurrency=2, latency_s=1.5) as demo, ThreadPoolExecutor(6) as threads:
        responses = list(threads.map(lambda number: demo.ask(f"ticket {number}"), range(6)))
        refused = [r for r in responses if r.status_code == 429]
        assert Counter(r.status_code for r in responses) == {200: 2, 429: 4}
        assert all("concurrent" in error_message(r) for r in refused)
        assert demo.server.stats().max_in_flight == 2
        assert demo.ask("ticket 7").status_code == 200


# Counts


def test_the_counts_add_up() -> None:
    with asking() as demo:
        first = demo.ask("one").json()["usage"]
        second = demo.ask("two").json()["usage"]
        demo.ask("one")
        demo.send({"model": "none"})
        root = demo.server.base_url.removesuffix("/v1")
        stats = demo.client.get(f"{root}/demo/stats").json()
        assert stats == {
            "requests": 4,
            "by_status": {"200": 3, "422": 1},
            "answered": 3,
            "prompt_tokens": 2 * first["prompt_tokens"] + second["prompt_tokens"],
            "completion_tokens": 2 * first["completion_tokens"] + second["completion_tokens"],
            "in_flight": 0,
            "max_in_flight": 1,
            "disconnected": 0,
            "dropped": 0,
            "faults": {},
            "distinct_bodies": 3,
            "repeated_bodies": 1,
            "answered_again": 1,
            "batch": {"calls": {}, "created": 0, "by_status": {}, "lines": 0, "faults": {}},
        }
        bodies = demo.client.get(f"{root}/demo/bodies").json()
        assert sorted(bodies.values()) == [[1, 0], [1, 1], [2, 2]]
    assert demo.server.stats().answered == 3


def test_bodies_need_not_be_tracked() -> None:
    with asking(track_bodies=False) as demo:
        assert demo.ask().status_code == 200
        assert demo.server.stats().distinct_bodies is None
        assert demo.server.bodies() == {}


# Start and end


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.005)


def test_it_starts_and_stops_twenty_times_leaving_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, started = set(threading.enumerate()), time.perf_counter()
    for _ in range(20):
        server = DemoServer(DemoOptions(latency_s=0))
        server.start()
        answered = httpx.post(f"{server.base_url}/chat/completions", json=body(), verify=NO_TLS)
        assert answered.status_code == 200
        server.stop()
        server.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.base_url}/models", verify=NO_TLS)
    assert time.perf_counter() - started < 10
    # Threads that other tests left may end meanwhile.
    assert set(threading.enumerate()) <= threads
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert not [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))]
    assert capfd.readouterr() == ("", "")


def test_nonsense_on_the_socket_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with asking() as demo:
        port = int(demo.server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"this is not HTTP\r\n\r\n")
            assert b"400" in sock.recv(1000)
        assert demo.ask().status_code == 200
    assert not caplog.records


def test_stopping_cuts_what_is_under_way() -> None:
    with asking(faults={"hang": 1}) as demo, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(demo.ask)
        wait_until(lambda: demo.server.stats().in_flight == 1)
        started = time.perf_counter()
        demo.server.stop()
        assert time.perf_counter() - started < 2
        assert isinstance(waiting.exception(timeout=5), httpx.TransportError)
        assert demo.server.stats().in_flight == 0


def test_a_stopped_server_starts_again_and_counts_on() -> None:
    server = DemoServer(DemoOptions(latency_s=0))
    for round_ in (1, 2):
        with server:
            assert httpx.post(f"{server.base_url}/chat/completions", json=body(), verify=NO_TLS).status_code == 200
        assert server.stats().answered == round_


def test_it_runs_under_any_loop() -> None:
    async def under_asyncio() -> int:
        with DemoServer(DemoOptions(latency_s=0)) as server:
            async with httpx.AsyncClient(verify=NO_TLS) as client:
                return (await client.post(f"{server.base_url}/chat/completions", json=body())).status_code

    async def under_trio() -> int:
        return await under_asyncio()

    assert asyncio.run(under_asyncio()) == 200
    assert trio.run(under_trio) == 200


def test_misuse_is_told() -> None:
    server = DemoServer(DemoOptions())
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.base_url
    with server:
        port = int(server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        with pytest.raises(RuntimeError, match="already running"):
            server.start()
        with pytest.raises(OSError, match="in use"):
            DemoServer(DemoOptions(), port=port).start()


@pytest.mark.parametrize("number", one_in(2, [signal.SIGINT, signal.SIGTERM]))
@pytest.mark.thorough
def test_served_alone_it_ends_at_a_signal(number: signal.Signals) -> None:
    program = (
        "from batchchat.demo import Demo, DemoOptions, serve\n"
        "ended = serve(DemoOptions(faults={'hang': 1}), port=0, on_start=lambda url: print(url, flush=True))\n"
        "print(ended.name)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "tracemalloc", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/chat/completions", json=body(), timeout=0.2, verify=NO_TLS)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, f"{number.name}\n", "")


# On a virtual clock: the same application in memory


def virtual_seconds(texts: list[str], **options: Any) -> list[float]:
    """Return how long each answer takes, one after the other."""

    async def main() -> list[float]:
        app = create_app(DemoOptions(**options))
        taken: list[float] = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo/v1") as client:
            for text in texts:
                started = trio.current_time()
                data = body(messages=[{"role": "user", "content": text}])
                assert (await client.post("/chat/completions", json=data)).status_code == 200
                taken.append(trio.current_time() - started)
        return taken

    seconds: list[float] = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seconds


def test_latency_follows_from_seed_and_body() -> None:
    first, second, other = virtual_seconds(["one", "one", "two"], latency_s=30.0)
    assert first == pytest.approx(second)
    assert first != pytest.approx(other)
    assert first != pytest.approx(virtual_seconds(["one"], latency_s=30.0, seed=1)[0])


def test_latency_is_about_the_median_and_grows_with_the_answer() -> None:
    short = sorted(virtual_seconds([f"{n}" for n in range(41)], latency_s=10.0))
    long = sorted(virtual_seconds([f"{n} " + "antidisestablishmentarianism " * 15 for n in range(41)], latency_s=10.0))
    assert 8 < short[20] < 13
    assert short[0] != short[40]
    assert long[20] > 1.5 * short[20]


def test_a_slow_answer_takes_twenty_times_as_long() -> None:
    (usual,), (slow,) = (virtual_seconds(["one"], faults=faults) for faults in ({}, {"slow": 1}))
    assert slow == pytest.approx(20 * usual)


def test_a_minute_on_the_server_admits_no_more_than_its_limit() -> None:
    async def main() -> list[float]:
        app = create_app(DemoOptions(requests_per_minute=30, latency_s=0))
        admitted: list[float] = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo/v1") as client:
            while trio.current_time() < start + 300:
                response = await client.post("/chat/completions", json=body())
                if response.status_code == 200:
                    admitted.append(trio.current_time())
                await trio.sleep(0.7)
        return admitted

    clock = trio.testing.MockClock(autojump_threshold=0)
    start = clock.current_time()
    admitted: list[float] = trio.run(main, clock=clock)
    assert len(admitted) == 150
    assert all(later - earlier >= 60 for earlier, later in zip(admitted, admitted[30:], strict=False))
