"""The caption pipeline against a local server that behaves badly, and the classifier that corrects drafts."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from unif2ace.cli import main
from unif2ace.training.chat_endpoint import ChatEndpoint
from unif2ace.training.data.attribute_classifier import (
    LabelledFaces,
    load_classifier,
    read_labels,
    train_classifier,
    useful_labels,
)
from unif2ace.training.data.caption_writer import (
    V1,
    AnswerError,
    CaptionWriter,
    parse_questions,
    read_done,
    write_captions,
    write_labels,
)
from unif2ace.training.data.records import FaceRecord
from unif2ace.training.data.sources import TooManyBrokenSamplesError, open_faces
from unif2ace.training.synthetic.painted.dataset import attributes_of, identity_of
from unif2ace.training.synthetic.painted.painter import paint


COLORS = ("red", "green", "blue", "white")
QUESTIONS = [{"question": f"What is thing {n}?", "answer": f"thing {n}"} for n in range(3)]


class Server(ThreadingHTTPServer):
    """
    An OpenAI-compatible server. `faults` are taken one a request until there are none: "429", "500", "html",
    "broken json", "cut", "empty", "prose" (instead of a JSON list), "slow", "hang up".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def prompts(self):
        texts = []
        for request in self.requests:
            content = request["messages"][-1]["content"]
            texts.append(content if isinstance(content, str) else content[-1]["text"])
        return texts


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.times.append(time.monotonic())
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault in ("429", "500"):
            return self.reply(int(fault), '{"error": {"message": "not now"}}', {"retry-after-ms": "1"})
        if fault == "html":
            return self.reply(200, "<html>a proxy</html>")
        if fault == "hang up":
            self.close_connection = True
            return self.connection.close()
        if fault == "slow":
            time.sleep(1.0)
        content, reason = self.answer(request), "stop"
        if fault == "cut":
            content, reason = content[:20], "length"
        if fault == "empty":
            content = ""
        if fault == "prose":
            content = "Sure, I would love to help with that! [Ask me {anything}"
        message = {"role": "assistant", "content": content}
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            }
        )
        self.reply(200, body[: len(body) // 2] if fault == "broken json" else body)

    def answer(self, request):
        content = request["messages"][-1]["content"]
        if isinstance(content, str):
            return f"Here they are:\n```json\n{json.dumps(QUESTIONS)}\n```"
        picture = Image.open(io.BytesIO(base64.b64decode(content[0]["image_url"]["url"].split(",")[1])))
        color = picture.convert("RGB").getpixel((0, 0))
        step = "Refined" if "classifier" in content[1]["text"] else "Draft"
        return f"{step} text of the face of colour {color}."

    def reply(self, status, body, headers=None):
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())
        except (BrokenPipeError, ConnectionResetError):  # the client had waited long enough
            pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for color in COLORS:
        Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")
    return folder


def make_writer(server, tmp_path, **options):
    endpoint = {"timeout": 0.5, "max_retries": 2, "log": tmp_path / "out.answers.jsonl"}
    endpoint |= {name: options.pop(name) for name in list(options) if name in ("requests_per_minute", "max_retries")}
    vision = ChatEndpoint(server.url, "eyes", **endpoint)
    options = {"labels": lambda image: {"smiling": "yes", "bangs": "no", "age": "20-29"}, "backoff": 0.01} | options
    return CaptionWriter(vision, **options)


def write(server, faces, tmp_path, workers=1, **options):
    stream = open_faces(faces, need_text=False)
    limits = {name: options.pop(name) for name in ("limit", "max_failed") if name in options}
    writer = make_writer(server, tmp_path, **options)
    return write_captions(stream, tmp_path / "out.jsonl", writer, workers, progress=False, **limits)


def test_steps_and_what_is_kept(server, faces, tmp_path):
    assert write(server, faces, tmp_path)[0] == len(COLORS)
    entry = read_done(tmp_path / "out.jsonl")["green.png"]
    assert entry["draft"] == "Draft text of the face of colour (0, 128, 0)."
    assert entry["captions"] == ["Refined text of the face of colour (0, 128, 0)."]
    assert entry["conversations"] == QUESTIONS
    assert entry["labels"] == {"smiling": "yes", "bangs": "no", "age": "20-29"} and entry["prompts"] == "1"
    draft, refine, questions = server.prompts()[3:6]
    assert entry["draft"] in refine and "- smiling\n- not bangs\n- age: 20-29" in refine
    assert entry["captions"][0] in questions and "Write 8 different questions" in questions
    # every request with its answer, and the words of the prompts
    log = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().split("\n") if line]
    assert [item["prompt"] for item in log] == server.prompts()
    assert log[4]["answer"] == entry["captions"][0]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["faces"] == 4 and report["prompts"]["refine"] == V1.refine and report["failed"]["count"] == 0


@pytest.mark.parametrize(
    "faults",
    [
        ["429", "429"],
        ["500", "429", "500"],
        ["html"],
        ["broken json"],
        ["cut"],
        ["empty"],
        ["slow"],
        ["hang up"],
        ["429", "cut", "html", "empty"],
    ],
)
def test_bad_answers_are_asked_again(server, faces, tmp_path, faults):
    server.faults = list(faults)
    written, failed = write(server, faces, tmp_path, limit=1)
    assert written == 1 and failed.count == 0 and not server.faults
    (entry,) = read_done(tmp_path / "out.jsonl").values()
    assert entry["draft"].startswith("Draft text of the face") and entry["captions"][0].startswith("Refined text")
    assert len(server.requests) >= 3 + len(faults)


def test_invalid_questions_are_asked_again(server, faces, tmp_path):
    writer = make_writer(server, tmp_path)
    server.faults = ["", "", "prose", "prose"]
    record = next(iter(open_faces(faces, need_text=False)))
    assert writer.write(record)["conversations"] == QUESTIONS
    assert len(server.requests) == 5
    assert [request["seed"] for request in server.requests] == [0, 0, 0, 1, 2]


def test_a_face_that_fails_is_named_and_tried_again_later(server, faces, tmp_path):
    server.faults = ["cut"] * 4
    written, failed = write(server, faces, tmp_path, attempts=2, max_retries=0, max_failed=2)
    assert written == 2 and failed.count == 2
    assert set(dict(failed.named)) == {"blue.png", "green.png"}
    assert "longer than 512 tokens" in failed.named[0][1]
    before = len(server.requests)
    written, failed = write(server, faces, tmp_path, attempts=2)
    assert written == 2 and failed.count == 0
    assert set(read_done(tmp_path / "out.jsonl")) == {f"{color}.png" for color in COLORS}
    assert len(server.requests) == before + 6


def test_bad_answers_in_the_log_do_not_bar_a_later_run(server, faces, tmp_path):
    for path in sorted(faces.glob("*.png"))[1:]:
        path.unlink()
    server.faults = ["", "", "prose", "prose"]
    assert write(server, faces, tmp_path, attempts=2)[1].count == 1
    assert len(server.requests) == 4
    assert write(server, faces, tmp_path, attempts=2)[0] == 1
    assert [request["seed"] for request in server.requests] == [0, 0, 0, 1, 2]


def test_too_many_failures_end_the_run(server, faces, tmp_path):
    server.faults = ["500"] * 100
    with pytest.raises(TooManyBrokenSamplesError, match="more than 1 broken samples .*InternalServerError"):
        write(server, faces, tmp_path, attempts=1, max_retries=0, max_failed=1)
    assert json.loads((tmp_path / "out.report.json").read_text())["failed"]["count"] == 2


def test_an_interrupted_run_goes_on(server, faces, tmp_path):
    write(server, faces, tmp_path, limit=2)
    path = tmp_path / "out.jsonl"
    lines = path.read_text()
    path.write_text(lines[: len(lines) - 30])  # killed while the second line was written
    assert len(read_done(path)) == 1
    before = len(server.requests)
    assert write(server, faces, tmp_path, workers=3)[0] == 3
    assert set(read_done(path)) == {f"{color}.png" for color in COLORS}
    assert len(server.requests) == before + 6  # the second face's answers were in the log


def test_rate_limit(server, faces, tmp_path):
    write(server, faces, tmp_path, workers=4, limit=2, requests_per_minute=600)
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 5 and server.times[-1] - server.times[0] > 0.4


def test_captions_of_a_data_set_are_hints_and_its_labels_corrections(server, faces, tmp_path):
    (faces / "red.txt").write_text("a red face")
    record = next(r for r in open_faces(faces, need_text=False) if r.id == "red.png")
    writer = make_writer(server, tmp_path, labels=None, num_questions=0)
    entry = writer.write(record)
    assert entry["known"] == "a red face" and "[a red face]" in server.prompts()[0]
    assert entry["captions"] == [entry["draft"]] and len(server.requests) == 1  # nothing to correct it by
    record.labels = {"male": "yes"}
    assert writer.write(record)["captions"][0].startswith("Refined")
    assert "- male" in server.prompts()[-1]


def test_command_writes_captions_that_are_read_with_the_pictures(server, faces, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    output = faces / "captions.jsonl"
    arguments = ["data", "caption", str(faces), "-o", str(output), "--endpoint", server.url, "--vision-model", "eyes"]
    assert main([*arguments, "--text-model", "words"]) == 0
    assert "4 faces written now" in capsys.readouterr().out
    assert {request["model"] for request in server.requests} == {"eyes", "words"}
    assert not any("secret-key" in path.read_text() for path in faces.glob("*.json*"))
    records = list(open_faces(faces))
    assert len(records) == 4 and records[0].captions[0].startswith("Draft") and len(records[0].questions) == 3
    assert main([*arguments, "--classifier", str(faces)]) == 2
    assert "data classifier" in capsys.readouterr().err


def test_questions_are_parsed():
    assert parse_questions(json.dumps(QUESTIONS)) == QUESTIONS
    assert parse_questions(f"```json\n{json.dumps(QUESTIONS)}\n```") == QUESTIONS
    assert len(parse_questions(json.dumps(QUESTIONS + QUESTIONS))) == 3
    for answer in ("none", "[]", "[1]", '[{"question": "q"}]', '[{"question": "q", "answer": " "}]', '[{"question": '):
        with pytest.raises(AnswerError):
            parse_questions(answer)
    assert write_labels({}) == "- none"


def test_classifier_reads_coarse_labels(tmp_path):
    painted = [(attributes_of(number), identity_of(number)) for number in range(600)]
    records = [FaceRecord(image=paint(*face, size=32), attributes=face[0]) for face in painted]
    faces = LabelledFaces(records, image_size=32)
    values = faces.values()
    assert set(values["background"]) == {"white", "gray", "blue", "green", "pink", "beige"}
    for labels in faces.labels[::2]:
        labels.pop("background")  # unknown for half of the faces
    faces.labels[1]["unique"] = "once"
    assert "unique" not in faces.values()
    accuracy = train_classifier(faces, tmp_path, steps=120, batch_size=32)
    assert accuracy["background"]["accuracy"] > accuracy["background"]["commonest"] + 0.2
    model, useful = load_classifier(tmp_path)
    assert useful == useful_labels(accuracy) and "background" in useful
    assert train_classifier(faces, tmp_path, steps=120) == accuracy  # a finished run stays as it is
    record = next(iter(open_faces("painted:1", split="test")))
    everything = read_labels(model, record.image, threshold=0.0)
    assert set(everything) == set(values)
    sure = read_labels(model, record.image, threshold=0.9, names=["background", "gender"])
    assert sure.items() <= everything.items() and set(sure) <= {"background", "gender"}


def test_classifier_needs_labels(faces):
    with pytest.raises(ValueError, match="no picture with labels"):
        LabelledFaces(open_faces(faces, need_text=False), 32)
