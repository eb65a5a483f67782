"""
Load the HTTP service on the loopback: throughput against one request at a time, and what an overload does.

    python benchmarks/serve_load.py
    python benchmarks/serve_load.py --requests 64 --clients 16 --steps 16 --device cuda

Starts `unif2ace serve` in a process of its own. The same requests are sent one after the other and by many clients at
once, in turns, so that both meet the same load of the machine; every picture must be the same both times. CPU time
says more than the clock where other programs run, too.

Then 300 mixed requests come from 8 clients, pictures and chats by turns, and every tenth hangs up at once: every
picture and every answer must be the one that the pipeline makes alone, in this process.

Then many more requests than there is room for are sent at once: each must be answered with 200 or 429, and the service
must be well afterwards.
"""

import argparse
import base64
import http.client
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image

from unif2ace import UniF2acePipeline
from unif2ace.modeling_unif2ace import load_image


QUESTIONS = ("What is on the head?", "Which colour is the hair?", "Is there a beard?", "Describe this face.")
MAX_TOKENS = 24
DIFFERENT = 16  # pictures, and answers, among the mixed requests
PROMPTS = ("an old man with a grey beard", "a young woman with hoop earrings", "a bald man", "a girl with red hair")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Client:
    """Sends requests to the service at a port."""

    def __init__(self, port: int, steps: int):
        self.port, self.steps = port, steps

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def ask(self, face: Image.Image, question: str) -> tuple[int, str]:
        """Status and answer (or error) of a question about a face."""
        file = io.BytesIO()
        face.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": MAX_TOKENS}
        response = self._post("/v1/chat/completions", body).getresponse()
        content = json.loads(response.read())
        if response.status != 200:
            return response.status, content["error"]["message"]
        return 200, content["choices"][0]["message"]["content"]

    def hang_up(self, number: int):
        """Ask for a picture and go away."""
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "num_inference_steps": self.steps}
        self._post("/v1/images/generations", body).close()

    def _post(self, path: str, body: dict) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def picture(self, number: int) -> tuple[int, str, float]:
        """Status, picture (or error) and seconds of request `number`."""
        start = time.perf_counter()
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "num_inference_steps": self.steps}
        response = self._post("/v1/images/generations", body).getresponse()
        content = json.loads(response.read())
        seconds = time.perf_counter() - start
        if response.status != 200:
            return response.status, content["error"]["message"], seconds
        return 200, content["data"][0]["b64_json"], seconds


def wait_until_ready(client: Client, process: subprocess.Popen):
    while process.poll() is None:
        try:
            if client.get("/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the service did not start")


def metrics(client: Client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def mean_batch(before: dict[str, float], after: dict[str, float]) -> float:
    name = "unif2ace_step_batch_size_"
    return (after[name + "sum"] - before[name + "sum"]) / (after[name + "count"] - before[name + "count"])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 if a picture differs or an overload is answered with anything but 200 and 429."""
    parser = argparse.ArgumentParser(description="Load the HTTP service.")
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--device", help="where the service runs")
    parser.add_argument("--requests", type=int, default=32, help="requests of a run (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="clients at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (default: %(default)s)")
    parser.add_argument("--mixed", type=int, default=300, help="mixed requests; 0 for none (default: %(default)s)")
    parser.add_argument("--mixed-clients", type=int, default=8, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--waiting", type=int, default=32, help="places to wait (default: %(default)s)")
    options = parser.parse_args(arguments)

    port = free_port()
    command = [sys.executable, "-m", "unif2ace.cli", "serve", "--port", str(port)]
    command += ["--max-batch", str(options.clients), "--max-waiting", str(options.waiting), "--timeout", "600"]
    for name in ("model", "device"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = Client(port, options.steps)
        wait_until_ready(client, process)
        return measure(client, options)
    finally:
        process.terminate()
        process.wait(30)


def measure(client: Client, options: argparse.Namespace) -> int:
    """Print the throughputs and what an overload did."""
    client.picture(0)
    numbers = range(options.requests)
    seconds: dict[int, list[float]] = {1: [], options.clients: []}
    latencies: dict[int, list[float]] = {1: [], options.clients: []}
    cpu_seconds: dict[int, list[float]] = {1: [], options.clients: []}
    pictures, batch = {}, {}
    for _ in range(options.runs):
        for clients in seconds:
            before = metrics(client)
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                answers = list(pool.map(client.picture, numbers))
            seconds[clients].append(time.perf_counter() - start)
            after = metrics(client)
            cpu_seconds[clients].append(after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"])
            batch[clients] = mean_batch(before, after)
            latencies[clients] += [answer[2] for answer in answers]
            pictures[clients] = [answer[1] for answer in answers]
    same = pictures[1] == pictures[options.clients]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, device {options.device or 'default'}"
    )
    print(f"{options.requests} requests of {options.steps} steps, median of {options.runs} runs")
    print("| clients | pictures in a step | pictures/s | CPU s a picture | latency, s: median | slowest |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for clients, runs in seconds.items():
        rate = options.requests / statistics.median(runs)
        cpu = statistics.median(cpu_seconds[clients]) / options.requests
        median, slowest = statistics.median(latencies[clients]), max(latencies[clients])
        print(f"| {clients} | {batch[clients]:.1f} | {rate:.2f} | {cpu:.2f} | {median:.2f} | {slowest:.2f} |")
    for name, values in (("throughput", seconds), ("pictures in a second of CPU time", cpu_seconds)):
        gain = statistics.median(values[1]) / statistics.median(values[options.clients])
        print(f"{options.clients} clients at once, {name}: {gain:.2f} times that of one")
    print(f"pictures identical: {'yes' if same else 'NO'}")

    mixed = measure_mixed(client, options) if options.mixed else True
    flood = 4 * (options.clients + options.waiting)
    with ThreadPoolExecutor(flood) as pool:
        answers = list(pool.map(client.picture, range(flood)))
    counts = Counter(answer[0] for answer in answers)
    print(
        f"overload, {flood} requests at once: " + ", ".join(f"{n} × {status}" for status, n in sorted(counts.items()))
    )
    alike = all(answers[number][1] == pictures[1][number] for number in numbers if answers[number][0] == 200)
    healthy = client.get("/health")[0] == 200 and client.picture(0)[1] == pictures[1][0]
    print(f"pictures made under overload identical: {'yes' if alike else 'NO'}")
    print(f"well afterwards: {'yes' if healthy else 'NO'}")
    return 0 if same and mixed and alike and healthy and set(counts) <= {200, 429} else 1


def measure_mixed(client: Client, options: argparse.Namespace) -> bool:
    """Pictures and chats from several clients; whether each is what the pipeline makes alone."""
    pipe = UniF2acePipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)

    def alone(number: int) -> Image.Image:
        generator = torch.Generator().manual_seed(number)
        return pipe(PROMPTS[number % len(PROMPTS)], num_inference_steps=client.steps, generator=generator).images[0]

    faces = [alone(number) for number in range(DIFFERENT)]
    pairs = [(faces[number], QUESTIONS[number // 4 % len(QUESTIONS)]) for number in range(DIFFERENT)]
    answers = [pipe.answer(face, question, max_new_tokens=MAX_TOKENS) for face, question in pairs]

    def request(number: int) -> str:
        item = number // 2 % DIFFERENT
        if number % 10 == 9:
            client.hang_up(number)
            return "hung up"
        if number % 2:
            status, text = client.ask(*pairs[item])
            return "same" if status == 200 and text == answers[item] else f"answer {item}: {status} {text!r}"
        status, content, _ = client.picture(item)
        if status != 200:
            return f"picture {item}: {status} {content}"
        picture = load_image(base64.b64decode(content))
        return "same" if picture.tobytes() == faces[item].tobytes() else f"picture {item} differs"

    with ThreadPoolExecutor(options.mixed_clients) as pool:
        results = Counter(pool.map(request, range(options.mixed)))
    shown = ", ".join(f"{count} × {what}" for what, count in results.most_common())
    print(f"{options.mixed} mixed requests of {options.mixed_clients} clients: {shown}")
    return set(results) <= {"same", "hung up"}


if __name__ == "__main__":
    sys.exit(main())
