"""`unif2ace serve` over real HTTP on the loopback: answers, sharing of steps, limits, bad input."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import re
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.pipelines import read_provenance


pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
uvicorn = pytest.importorskip("uvicorn", reason="the service needs the extra `serve`")

from unif2ace.pipelines.serving.app import ServiceLimits, create_app  # noqa: E402  (needs fastapi)
from unif2ace.pipelines.serving.connections import ConnectionLimits, server_config  # noqa: E402
from unif2ace.pipelines.serving.engine import EngineClosedError, QueueFullError  # noqa: E402
from unif2ace.pipelines.serving.image_engine import ImageEngine, ImageRequest  # noqa: E402
from unif2ace.pipelines.serving.limits import RequestLimits  # noqa: E402
from unif2ace.pipelines.serving.text_engine import TextEngine, TextRequest  # noqa: E402


LIMITS = ServiceLimits(
    max_batch_size=4, max_waiting=6, max_body_bytes=200_000, max_pixels=10_000, request_seconds=60, body_seconds=1
)


class Server:
    """The service in a thread, at a free port."""

    def __init__(self, pipe, limits=LIMITS, connections=None, **options):
        self.app = create_app(pipe, "tiny", limits, **options)
        self.server = uvicorn.Server(server_config(self.app, "127.0.0.1", 0, connections, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join(30)

    def __call__(self, method, path, body=None, headers=None):
        """Status, headers and content of an answer; JSON is decoded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, response.headers, json.loads(content) if is_json else content.decode()

    def images(self, prompt="a man", **fields):
        return self("POST", "/v1/images/generations", {"prompt": prompt, "num_inference_steps": 3, **fields})

    def chat(self, content, **fields):
        messages = content if isinstance(content, list) and "role" in content[0] else None
        messages = messages or [{"role": "user", "content": content}]
        return self("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 6, **fields})


@pytest.fixture(scope="module")
def server(pipe):
    with Server(pipe) as server:
        yield server


@pytest.fixture(scope="module")
def face():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def data_url(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def question(face, text="What is it?"):
    return [{"type": "image_url", "image_url": {"url": data_url(face)}}, {"type": "text", "text": text}]


def picture_of(item):
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


def alone(pipe, request):
    """What the pipeline makes of a request."""
    return pipe(
        request.prompt,
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        negative_prompt=request.negative_prompt,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]


# The engines


REQUESTS = [
    ImageRequest("a man", seed=1, num_inference_steps=7),
    ImageRequest("a young woman with round glasses", seed=2, num_inference_steps=3, guidance_scale=1.0),
    ImageRequest("a man with a hat and a beard", seed=3, num_inference_steps=5, negative_prompt="a woman"),
    ImageRequest("a woman", seed=2**32 - 1, num_inference_steps=1, guidance_scale=7.5),
    ImageRequest("a hat", seed=5, num_inference_steps=16),
    ImageRequest("a man", seed=6, num_inference_steps=2, negative_prompt="a man with a hat and a beard"),
]


def test_pictures_at_different_steps_share_them_and_stay_the_same(pipe):
    sizes = []
    engine = ImageEngine(pipe, max_batch_size=3, on_step=sizes.append)
    try:
        images = [future.result(60) for future in engine.submit(REQUESTS)]
    finally:
        engine.close()
    for request, image in zip(REQUESTS, images, strict=True):
        assert image.tobytes() == alone(pipe, request).tobytes()
        assert read_provenance(image).seed == request.seed
    assert sum(sizes) == sum(request.num_inference_steps for request in REQUESTS)
    assert max(sizes) == 3 and len(sizes) < sum(sizes)


def test_a_bad_request_spoils_no_other(pipe):
    engine = ImageEngine(pipe)
    try:
        good, bad, late = engine.submit(
            [REQUESTS[0], ImageRequest("very " * 200, seed=1), ImageRequest("a man", 1, deadline=time.monotonic() - 1)]
        )
        with pytest.raises(ValueError, match="tokens, the limit is 22"):
            bad.result(60)
        with pytest.raises(TimeoutError):
            late.result(60)
        assert good.result(60).tobytes() == alone(pipe, REQUESTS[0]).tobytes()
    finally:
        engine.close()


def test_cancelled_pictures_make_room(pipe):
    engine = ImageEngine(pipe, max_batch_size=1, max_waiting=2)
    try:
        first = engine.submit([ImageRequest("a man", 1, num_inference_steps=100_000)])[0]
        while not engine.num_active:
            time.sleep(0.01)
        waiting = engine.submit([ImageRequest("a man", 2, num_inference_steps=2)] * 2)
        with pytest.raises(QueueFullError) as error:
            engine.submit([REQUESTS[0]])
        assert error.value.retry_after >= 1
        assert first.cancel()
        assert all(future.result(60) for future in waiting)
    finally:
        engine.close()


def test_closing_ends_what_is_under_way(pipe):
    engine = ImageEngine(pipe, max_batch_size=1)
    futures = engine.submit([ImageRequest("a man", 1, num_inference_steps=100_000)] * 2)
    engine.close()
    for future in futures:
        with pytest.raises(EngineClosedError):
            future.result(10)
    with pytest.raises(EngineClosedError):
        engine.submit([REQUESTS[0]])
    assert not engine.is_alive


def test_a_failed_step_ends_its_pictures_and_not_the_engine(pipe, monkeypatch):
    engine = ImageEngine(pipe)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(pipe.transformer, "predict_codes", None)
            with pytest.raises(TypeError):
                engine.submit([REQUESTS[0]])[0].result(60)
        assert engine.is_alive
        assert engine.submit([REQUESTS[0]])[0].result(60)
    finally:
        engine.close()


def test_texts_in_a_batch_are_those_alone(pipe, face):
    engine = TextEngine(pipe)
    questions = ["What is it?", "Describe this face. What is it?", "a man"]
    pieces = {text: [] for text in questions}
    finished = threading.Semaphore(0)

    def listen_for(text):
        def listen(piece):
            pieces[text].append(piece)
            if isinstance(piece, Exception) or piece.finish_reason:
                finished.release()

        return listen

    try:
        for text in questions:
            content = [{"type": "image", "image": face}, {"type": "text", "text": text}]
            engine.submit(TextRequest([{"role": "user", "content": content}], max_new_tokens=8), listen_for(text))
        for _ in questions:
            assert finished.acquire(timeout=60)
    finally:
        engine.close()
    for text in questions:
        assert "".join(piece.text for piece in pieces[text]).strip() == pipe.answer(face, text, max_new_tokens=8)
        assert pieces[text][-1].completion_tokens <= 8


# Pictures over HTTP


def test_images(server, pipe):
    status, _, answer = server.images("a man with a hat", n=2, seed=4, guidance_scale=2)
    assert status == 200 and answer["size"] == "16x16" and answer["output_format"] == "png"
    assert [item["seed"] for item in answer["data"]] == [4, 5]
    for item in answer["data"]:
        expected = alone(pipe, ImageRequest("a man with a hat", item["seed"], 3, 2.0))
        picture = picture_of(item)
        assert picture.tobytes() == expected.tobytes() and read_provenance(picture).seed == item["seed"]


def test_image_formats_and_random_seeds(server):
    for output_format in ("png", "jpeg", "webp"):
        status, _, answer = server.images(output_format=output_format, output_compression=95)
        assert status == 200 and picture_of(answer["data"][0]).format == output_format.upper()
    assert server.images()[2]["data"][0]["seed"] != server.images()[2]["data"][0]["seed"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "  "}, "prompt: String should have at least 1 character"),
        ({"prompt": 3}, "prompt: Input should be a valid string"),
        ({"prompt": "very " * 200}, "tokens, the limit is 22"),
        ({"n": 11}, "n: Input should be less than or equal to 10"),
        ({"size": "1024x1024"}, "expected 'auto' or '16x16'"),
        ({"response_format": "link"}, "response_format: Input should be 'b64_json' or 'url'"),
        ({"num_inference_steps": 0}, "num_inference_steps: "),
        ({"guidance_scale": -1}, "guidance_scale: "),
        ({"guidance_scale": "NaN"}, "guidance_scale: "),
        ({"seed": -1}, "seed: "),
    ],
)
def test_wrong_image_requests(server, fields, message):
    status, _, answer = server.images(**fields)
    assert status == 400 and message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


# Texts over HTTP


def test_an_address_holds_the_picture(server):
    item = server.images(seed=3, response_format="url")[2]["data"][0]
    same = server.images(seed=3)[2]["data"][0]
    assert item["url"] == f"data:image/png;base64,{same['b64_json']}" and item["b64_json"] is None
    assert same["url"] is None and same["revised_prompt"] is None


def edit(server, face, **fields):
    body = {"prompt": "a man", "image": data_url(face), "num_inference_steps": 2, **fields}
    return server("POST", "/v1/images/edits", body)


def test_an_edit_without_a_change_gives_the_picture_back(server, pipe, face):
    status, _, answer = edit(server, face, strength=0, seed=5, n=2)
    assert status == 200 and [item["seed"] for item in answer["data"]] == [5, 6]
    same = pipe.decode_latents(pipe.encode_images(face), "pil")[0]
    assert all(picture_of(item).tobytes() == same.tobytes() for item in answer["data"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": None}, "image: Field required"),
        ({"image": "http://127.0.0.1/face.png"}, "the service fetches nothing from the network"),
        ({"image": "data:image/png;base64,AAAA"}, "not a picture"),
        ({"image": ["data:image/png;base64,AAAA"] * 2}, "image: 2 pictures, expected one"),
        ({"image": 3}, "image"),
        ({"mask": data_url(Image.new("L", (24, 20)))}, "mask: nothing of it is transparent"),
        ({"mask": data_url(Image.new("RGBA", (8, 8)))}, "the mask has 8 × 8 pixels, the picture 24 × 20"),
        ({"strength": 2}, "strength"),
        ({"source_prompt": "very " * 200}, "tokens, the limit is 22"),
        ({"size": "1024x1024"}, "expected 'auto' or '16x16'"),
    ],
)
def test_wrong_edits(server, face, fields, message):
    status, _, answer = edit(server, face, **fields)
    assert status == 400 and message in answer["error"]["message"], answer


def test_edits_as_a_form(server, face):
    """As OpenAI's clients send them: files of a form."""
    pytest.importorskip("python_multipart", reason="forms need python-multipart")
    expected = picture_of(edit(server, face, seed=5)[2]["data"][0])
    file = io.BytesIO()
    face.save(file, "PNG")

    def form(*parts):
        lines = []
        for name, value in parts:
            kind = f'; filename="{name}.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
            value = value if isinstance(value, bytes) else value.encode()
            lines.append(f'--x\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode() + value)
        body = b"\r\n".join([*lines, b"--x--\r\n"])
        return server("POST", "/v1/images/edits", body, {"Content-Type": "multipart/form-data; boundary=x"})

    given = [("prompt", "a man"), ("num_inference_steps", "2"), ("seed", "5"), ("n", "1")]
    status, _, answer = form(*given, ("image", file.getvalue()))
    assert status == 200 and picture_of(answer["data"][0]).tobytes() == expected.tobytes()
    assert form(*given, ("image[]", file.getvalue()))[0] == 200
    assert "expected one" in form(*given, *[("image[]", file.getvalue())] * 2)[2]["error"]["message"]
    assert form(*given, ("image", b"no picture"))[0] == 400
    assert form(*[("a", "1")] * 100)[0] == 400
    big = np.random.default_rng(0).integers(0, 256, 150_000, dtype=np.uint8).tobytes()  # thousands of commas
    assert "not a picture" in form(*given, ("image", big))[2]["error"]["message"]


def test_the_page_says_what_runs_and_fetches_nothing(server, pipe):
    status, headers, page = server("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert "<b>tiny</b>" in page and "16 × 16" in page and "as <code>api_key</code>" not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page) and "<script" not in page
    for address in re.findall(r'href="([^"]+)"', page):
        assert server("GET", f"/{address}")[0] == 200
    with Server(pipe, api_key="secret") as other:
        assert "as <code>api_key</code>" in other("GET", "/")[2]


def test_chat(server, pipe, face):
    status, _, answer = server.chat(question(face))
    assert status == 200 and answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    expected = pipe.answer(face, "What is it?", max_new_tokens=6)
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    usage = answer["usage"]
    assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == 6 else "stop")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_chat_stream_says_the_same(server, face):
    whole = server.chat(question(face))[2]["choices"][0]
    status, headers, stream = server.chat(question(face), stream=True, stream_options={"include_usage": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["usage"]["completion_tokens"] > 0 and chunks[-1]["choices"] == []
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert deltas[0]["delta"]["role"] == "assistant"
    text = "".join(item["delta"].get("content", "") for item in deltas)
    assert text.strip() == whole["message"]["content"] and deltas[-1]["finish_reason"] == whole["finish_reason"]


def test_stop_texts_end_an_answer(server, face):
    whole = server.chat(question(face))[2]["choices"][0]["message"]["content"]
    stop = whole[3:6]
    for stream in (False, True):
        answer = server.chat(question(face), stop=stop, stream=stream)[2]
        if stream:
            chunks = [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        else:
            text = answer["choices"][0]["message"]["content"]
        assert text.strip() == whole[: whole.index(stop)].strip()


def test_conversations_without_pictures_and_sampling(server, face):
    assert server.chat("What is it?")[0] == 200
    assert server.chat(question(face), temperature=1.5, top_p=0.9)[0] == 200
    messages = [
        {"role": "system", "content": "Describe."},
        {"role": "user", "content": question(face)},
        {"role": "assistant", "content": "a man"},
        {"role": "user", "content": "What is it? <|soi|> <|mask|>"},
    ]
    assert server.chat(messages)[0] == 200


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ([], {}, None),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}], {}, "fetches nothing"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], {}, "fetches nothing"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], {}, "not a picture"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}], {}, "base64"),
        ([{"type": "audio"}], {}, "messages.0.content"),
        ("why " * 300, {}, "but the model reads 256"),
        ("a man", {"max_tokens": 0}, "max_tokens: "),
        ("a man", {"temperature": 3}, "temperature: "),
        ("a man", {"n": 2}, "n: "),
        ("a man", {"tools": [{}]}, "cannot call tools"),
        ("a man", {"stop": ["a"] * 5}, "at most 4"),
        ([{"role": "assistant", "content": "a man"}], {}, "expected 'user'"),
        ([{"role": "tool", "content": "a man"}], {}, "messages.0.role"),
    ],
)
def test_wrong_chat_requests(server, content, fields, message):
    body = {"messages": content} if content and isinstance(content, list) and "role" in content[0] else None
    body = body or {"messages": [{"role": "user", "content": content}] if content else []}
    status, _, answer = server("POST", "/v1/chat/completions", {**body, **fields})
    assert status == 400 and (message is None or message in answer["error"]["message"])


def test_pictures_are_bounded(server, face):
    status, _, answer = server.chat(question(face.resize((200, 100))))
    assert status == 400 and "pixels" in answer["error"]["message"]
    both = [*question(face), *question(face)]
    assert "2 pictures, expected at most one" in server.chat(both)[2]["error"]["message"]


# Limits


def test_hostile_bodies(server):
    post = ("POST", "/v1/images/generations")
    for body in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b"null", b'"a man"', b'{"prompt": "\\ud800"}'):
        status, _, answer = server(*post, body)
        assert status == 400 and answer["error"]["message"], body[:20]
    assert server(*post, b" " * 200_001)[0] == 413
    # a body without a length is counted while it arrives
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", post[1])
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for size in (50_000, 50_000, 50_000, 50_000, 1):  # no more: the server hangs up on whoever is still sending
        connection.send(b"%x\r\n%s\r\n" % (size, b" " * size))
    assert connection.getresponse().status == 413
    connection.close()
    assert server("GET", "/v1/images/generations")[0] == 405
    assert server("GET", "/nothing")[0] == 404
    assert server("POST", "/v1/images/generations", {"prompt": "a man", "model": "gpt"})[0] == 404
    assert server.images()[0] == 200


def test_a_body_that_does_not_come(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"{")
    assert connection.getresponse().status == 408
    connection.close()


def test_overload_gives_429_and_nothing_else(pipe):
    with Server(pipe, ServiceLimits(max_batch_size=2, max_waiting=3)) as server, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda seed: server.images(seed=seed, num_inference_steps=12), range(30)))
        counts = {status: sum(answer[0] == status for answer in answers) for status in {a[0] for a in answers}}
        assert set(counts) == {200, 429} and counts[200] >= 3
        for status, headers, answer in answers:
            if status == 429:
                assert int(headers["retry-after"]) >= 1 and answer["error"]["type"] == "rate_limit_error"
            else:
                seed = answer["data"][0]["seed"]
                expected = alone(pipe, ImageRequest("a man", seed, 12))
                assert picture_of(answer["data"][0]).tobytes() == expected.tobytes()
        assert server("GET", "/health")[2]["images"] == {"active": 0, "waiting": 0}
        assert server.images()[0] == 200


def test_time_is_bounded_and_clients_may_leave(pipe):
    with Server(pipe, ServiceLimits(max_batch_size=1, request_seconds=1.5)) as server:
        # more steps than the interface allows cannot be asked for, so the batch is filled from inside
        engine = server.app.state.service.images
        slow = engine.submit([ImageRequest("a man", 1, num_inference_steps=100_000)])[0]
        assert server.images()[0] == 504
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", json.dumps({"prompt": "a man"}), kind)
        while not engine.num_waiting:
            time.sleep(0.01)
        connection.close()
        slow.cancel()
        deadline = time.monotonic() + 30
        while (engine.num_waiting or engine.num_active) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (engine.num_waiting, engine.num_active) == (0, 0)


def test_api_key(pipe):
    with Server(pipe, api_key="secret") as server:
        assert server.images()[0] == 401
        assert server("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert server("GET", "/v1/models", headers={"Authorization": "Bearer secret"})[0] == 200
        assert server("GET", "/health")[0] == 200


# Everything else


def test_models_health_and_metrics(server):
    status, _, models = server("GET", "/v1/models")
    assert status == 200 and [model["id"] for model in models["data"]] == ["tiny"]
    assert server("GET", "/v1/models/tiny")[2]["object"] == "model"
    assert server("GET", "/v1/models/other")[0] == 404
    assert server("GET", "/health")[2]["status"] == "ok"
    server.images()
    status, headers, text = server("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["unif2ace_pictures_total"]) >= 1
    assert float(values['unif2ace_requests_total{route="/v1/images/generations",status="200"}']) >= 1
    assert float(values["unif2ace_step_batch_size_count"]) >= 3
    assert values['unif2ace_work{kind="image",state="waiting"}'] == "0.0"


def test_pictures_and_texts_at_the_same_time(server, pipe, face):
    text = server.chat(question(face))[2]["choices"][0]["message"]["content"]
    image = alone(pipe, ImageRequest("a man", 9, 12))
    with ThreadPoolExecutor(4) as pool:
        images = [pool.submit(server.images, seed=9, num_inference_steps=12) for _ in range(2)]
        texts = [pool.submit(server.chat, question(face)) for _ in range(2)]
    for future in images:
        assert picture_of(future.result()[2]["data"][0]).tobytes() == image.tobytes()
    for future in texts:
        assert future.result()[2]["choices"][0]["message"]["content"] == text


def test_mixed_requests_change_nothing(server, pipe, face):
    """50 pictures and chats asked for by four clients: every picture is the one made alone, also before and after."""
    requests = [ImageRequest(REQUESTS[n % 6].prompt, n, 2 + n % 4, 1.0 + n % 3) for n in range(25)]
    alone_ = [alone(pipe, request).tobytes() for request in requests]
    answer = server.chat(question(face))[2]["choices"][0]["message"]["content"]

    def ask(number):
        if number % 2:
            return server.chat(question(face))[2]["choices"][0]["message"]["content"] == answer
        return drawn(number // 2)

    def drawn(number):
        request = requests[number]
        status, _, made = server.images(
            request.prompt,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
        )
        return picture_of(made["data"][0]).tobytes() == alone_[number]

    assert all(map(drawn, range(3)))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(50)))
    assert all(map(drawn, range(3)))
    assert [alone(pipe, request).tobytes() for request in requests[:3]] == alone_[:3]


def test_openai_client(server, face):
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(
        model="tiny", prompt="a man", n=2, extra_body={"seed": 3, "num_inference_steps": 2}
    )
    assert picture_of(answer.data[1].model_dump()).size == (16, 16)
    if find_spec("python_multipart"):
        file = io.BytesIO()
        face.save(file, "PNG")
        edited = client.images.edit(model="tiny", prompt="a man", image=file.getvalue(), extra_body={"seed": 3})
        assert picture_of(edited.data[0].model_dump()).size == (16, 16) and edited.data[0].seed == 3
    chunks = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": question(face)}], max_tokens=6, stream=True
    )
    whole = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": question(face)}], max_tokens=6
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="expected 'auto' or '16x16'"):
        client.images.generate(model="tiny", prompt="a man", size="1024x1024")


# Attacks


def silent(port, count):
    """Connections that say nothing."""
    return [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(count)]


@pytest.fixture(scope="module")
def guarded(pipe):
    """The service with limits on connections, as the command starts it."""
    limits = ConnectionLimits(header_seconds=1, idle_seconds=1, max_connections=12, max_per_client=8)
    with Server(pipe, connections=limits) as server:
        yield server


def test_silent_connections_make_room(guarded):
    crowd = silent(guarded.port, 30)
    try:
        assert guarded("GET", "/health")[0] == 200
        assert guarded.images()[0] == 200
    finally:
        for connection in crowd:
            connection.close()


def test_headers_have_to_come(guarded):
    with silent(guarded.port, 1)[0] as nothing, silent(guarded.port, 1)[0] as drip:
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # on a slow machine the time is over before the last letter
            for letter in b"GET /health HTTP/1.1\r\nX: y":
                drip.send(bytes([letter]))
                time.sleep(0.02)
        for connection in (nothing, drip):
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408 and "no request came" in json.loads(answer.read())["error"]["message"]
        assert time.monotonic() - start < 10


def test_what_is_no_request_gets_an_error_in_the_usual_form(guarded):
    with silent(guarded.port, 1)[0] as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400 and json.loads(answer.read())["error"]["type"] == "invalid_request_error"


def test_two_lengths_are_refused_and_nothing_is_smuggled(guarded):
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    chunked = b"0\r\n\r\n" + hidden
    for headers in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(chunked),
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: %d\r\n" % len(chunked),
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ):
        with silent(guarded.port, 1)[0] as connection:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + chunked)
            answer = b""
            while part := connection.recv(65536):  # until the service hangs up
                answer += part
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), headers


def test_nobody_writes_their_own_address_or_the_key_into_the_log(pipe, capfd):
    app = create_app(pipe, "tiny", LIMITS, "s3cret-key")
    server = uvicorn.Server(server_config(app, "127.0.0.1", 0, log_level="trace"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    for key, status in (("s3cret-key", 200), ("s3cret-ke", 401), ("s3cret-key2", 401)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        connection.request("GET", "/v1/models", headers=headers)
        response = connection.getresponse()
        assert response.status == status and key.encode() not in response.read()
        connection.close()
    server.should_exit = True
    thread.join(30)
    log = "".join(capfd.readouterr())
    assert "GET /v1/models" in log and "s3cret" not in log and "203.0.113.7" not in log


def test_clients_that_hang_up_leave_the_queue(pipe):
    with Server(pipe, ServiceLimits(max_batch_size=1, max_waiting=8)) as server:
        engine = server.app.state.service.images
        slow = engine.submit([ImageRequest("a man", 1, num_inference_steps=100_000)])[0]
        wait_until(lambda: engine.num_active == 1)
        body = json.dumps({"prompt": "a man"})
        crowd = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(8)]
        for connection in crowd:
            connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        wait_until(lambda: engine.num_waiting == 8)
        assert server.images()[0] == 429
        for connection in crowd:
            connection.close()
        wait_until(lambda: engine.num_waiting == 0)  # while the slow one is still under way
        assert engine.num_active == 1
        slow.cancel()
        assert server.images()[0] == 200


def test_cancelled_texts_leave_the_queue(pipe):
    engine = TextEngine(pipe, max_batch_size=1, max_waiting=2)
    try:
        chat = [{"role": "user", "content": "a man"}]
        slow = engine.submit(TextRequest(chat, max_new_tokens=200), lambda piece: None)
        wait_until(lambda: engine.num_active == 1)
        waiting = [engine.submit(TextRequest(chat), lambda piece: None) for _ in range(2)]
        with pytest.raises(QueueFullError):
            engine.submit(TextRequest(chat), lambda piece: None)
        for event in waiting:
            event.set()
        assert engine.num_waiting == 0
        slow.set()
    finally:
        engine.close()


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pictures_are_counted_before_any_is_decoded(server, monkeypatch):
    decoded = []
    monkeypatch.setattr("unif2ace.pipelines.serving.app.load_image", lambda *given: decoded.append(given))
    part = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (90, 90)))}}
    status, _, answer = server.chat([part] * 40)
    assert status == 400 and "40 pictures, expected at most one" in answer["error"]["message"]
    # a picture is not decoded for a conversation that cannot be answered either
    status, _, answer = server.chat([part, {"type": "text", "text": "why " * 300}])
    assert status == 400 and "but the model reads" in answer["error"]["message"]
    assert not decoded


@pytest.mark.parametrize("kind", ["pictures", "objects", "texts", "parts"])
def test_refused_requests_take_little_memory(pipe, kind):
    limits = ServiceLimits(max_body_bytes=8 * 2**20)
    with Server(pipe, limits) as server:
        file = io.BytesIO()
        Image.new("RGB", (4000, 4000)).save(file, "WEBP")
        url = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        body = {
            "pictures": lambda: {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}}] * 40}]},
            "objects": lambda: {"messages": [{}] * 2_500_000},
            "texts": lambda: {"messages": [{"role": "user", "content": "why " * 1_900_000}]},
            "parts": lambda: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]},
        }[kind]()  # fmt: skip
        body = json.dumps(body, separators=(",", ":")).encode()
        assert len(body) <= limits.max_body_bytes
        server("GET", "/health")
        before = peak_memory()
        start = time.monotonic()
        status, _, answer = server("POST", "/v1/chat/completions", body)
        assert status == 400 and len(answer["error"]["message"]) < 500
        assert time.monotonic() - start < 20 and peak_memory() - before < 50 * 2**20


def peak_memory():
    """The most memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_preparation_keeps_nobody_waiting_and_has_a_deadline(pipe, monkeypatch):
    limits = ServiceLimits(request_seconds=1, num_preparers=1)
    with Server(pipe, limits) as server, ThreadPoolExecutor(2) as pool:
        engine, free = server.app.state.service.texts, threading.Event()
        prepare = engine.prepare
        monkeypatch.setattr(engine, "prepare", lambda request: free.wait(10) and prepare(request))
        late = pool.submit(server.chat, "a man")
        assert late.result(30)[0] == 504
        assert server("GET", "/health")[2]["texts"] == {"active": 0, "waiting": 0}
        free.set()
        wait_until(lambda: server.chat("a man")[0] == 200)


def test_null_is_absent(server, face):
    nothing = dict.fromkeys(("model", "user", "size", "seed", "negative_prompt", "response_format", "output_format"))
    assert server.images(**nothing, n=None, stream=None, guidance_scale=None)[0] == 200
    names = ("model", "user", "temperature", "top_p", "stop", "stream", "stream_options", "n", "tools")
    messages = [
        {"role": "user", "content": question(face), "name": None},
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
    ]
    assert server.chat(messages, **dict.fromkeys(names))[0] == 200
    status, _, answer = server.images(prompt=None)
    assert status == 400 and "prompt" in answer["error"]["message"]


def test_odd_but_valid_numbers_and_echoes(server, face):
    status, _, answer = server.images(stream=True)
    assert status == 400 and "pictures are sent whole: leave stream out" in answer["error"]["message"]
    cold = server.chat(question(face), temperature=1e-320)[2]["choices"][0]["message"]
    assert cold == server.chat(question(face))[2]["choices"][0]["message"]
    for body in (
        {"messages": [{"role": "user", "content": [{"type": "x" * 100_000, "text": "a"}]}]},
        {"messages": [{"role": "x" * 100_000, "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}], "model": "x" * 100_000},
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 10**300},
    ):
        status, _, answer = server("POST", "/v1/chat/completions", body)
        assert status in (400, 404) and len(json.dumps(answer)) < 800
    assert len(json.dumps(server.images(size="9" * 100_000)[2])) < 800


def test_the_end_of_the_service_is_an_error_in_the_usual_form():
    """A request that is broken off by the server's shutdown."""
    sent = []

    async def never(scope, receive, send):
        await asyncio.Event().wait()

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    async def run():
        app = RequestLimits(never, max_body_bytes=100, body_seconds=1)
        task = asyncio.create_task(app({"type": "http", "headers": [], "path": "/v1/models"}, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await task
        assert app.free_bytes == 16 * 100

    asyncio.run(run())
    assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["error"]["type"] == "server_error"


def test_bodies_together_are_bounded(pipe):
    with Server(pipe, ServiceLimits(max_body_bytes=1000, max_bodies=1, body_seconds=20)) as server:
        slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        slow.putrequest("POST", "/v1/images/generations")
        slow.putheader("Content-Length", "900")
        slow.endheaders()
        slow.send(b" " * 800)
        wait_until(lambda: server.images(prompt="a man " * 40)[0] == 503)
        slow.close()
        wait_until(lambda: server.images()[0] == 200)
