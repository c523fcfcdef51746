"""ComfyUI's own server from a folder of its source, and a client that gets what its page gets."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import connect

NODES = Path(__file__).parents[1] / "examples" / "comfyui"
SECONDS = 1800  # to wait: ComfyUI takes long to start on a busy machine


@dataclass
class Run:
    """What the server told of a graph."""

    refused: str = ""
    """The answer to a graph that the server does not take."""
    status: str = ""
    messages: dict[str, Any] = field(default_factory=dict)
    """Events of the history, by their names."""
    frames: np.ndarray | None = None
    """The pictures that the graph saved, uint8 [frames, height, width, 3]."""
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    """node, value, total."""
    previews: list[np.ndarray] = field(default_factory=list)


class ComfyUI:
    """The server with lolrt's nodes alone. Models, custom nodes, pictures and settings are in `base`: nothing is written to its source."""

    def __init__(self, source: Path, base: Path) -> None:
        for name in ("custom_nodes", "models", "input", "output", "user"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "lolrt").symlink_to(NODES)
        python = source / ".venv" / "bin" / "python"
        self.python = str(python if python.exists() else sys.executable)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [self.python, "main.py", "--cpu", "--port", self.address.split(":")[1], "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        self.log = base / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=source, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"ComfyUI does not answer:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)
        self.socket = connect(f"ws://{self.address}/ws?clientId=test", max_size=None)

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(60)

    def ask(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def run(self, graph: dict[str, Any], interrupt: bool = False) -> Run:
        """interrupt: as soon as the first progress is told."""
        run = Run()
        try:
            prompt = json.loads(self.ask("/prompt", {"prompt": graph, "client_id": "test"}))["prompt_id"]
        except urllib.error.HTTPError as error:
            run.refused = error.read().decode()
            return run
        while True:
            told = self.socket.recv(timeout=SECONDS)
            if isinstance(told, bytes):
                kind, form = (int.from_bytes(told[i : i + 4], "big") for i in (0, 4))
                if (kind, form) == (1, 1):  # a preview, as JPEG
                    run.previews.append(_pixels(told[8:]))
                continue
            event = json.loads(told)
            if event["data"].get("prompt_id") != prompt:
                continue
            if event["type"] == "progress":
                run.progress.append((event["data"]["node"], event["data"]["value"], event["data"]["max"]))
                if interrupt:
                    self.ask("/interrupt", {})
                    interrupt = False
            if event["type"] == "executing" and event["data"]["node"] is None:
                break
        history = json.loads(self.ask(f"/history/{prompt}"))[prompt]
        run.status, run.messages = history["status"]["status_str"], dict(history["status"]["messages"])
        saved = [image for node in history["outputs"].values() for image in node.get("images", [])]
        if saved:
            run.frames = np.stack([_pixels(self.ask(f"/view?{urllib.parse.urlencode(image)}")) for image in saved])
        return run

    def _answers(self) -> bool:
        try:
            self.ask("/queue")
        except OSError:
            return False
        return True


def _pixels(picture: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(picture)).convert("RGB"))
