"""A real browser, Chromium without a window, driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0")
SECONDS = 30.0


def chromium() -> str | None:
    """The path of Chromium; None if it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    def __init__(self, profile: Path) -> None:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
        command = [str(chromium()), *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = next(line for line in self._process.stderr if "DevTools listening on" in line)
        self._address = "http" + line.split("ws", 1)[1].split("/devtools")[0]
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def open(self, url: str, width: int = 1360, height: int = 900, before: str = "") -> Page:
        """before: a script that runs before those of the page."""
        request = urllib.request.Request(f"{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request) as answer:
            return Page(json.load(answer)["webSocketDebuggerUrl"], url, width, height, before)

    def version(self) -> str:
        with urllib.request.urlopen(f"{self._address}/json/version") as answer:
            return json.load(answer)["Browser"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=SECONDS)


class Page:
    """A tab."""

    def __init__(self, address: str, url: str, width: int, height: int, before: str) -> None:
        from websockets.sync.client import connect

        self._socket, self._calls = connect(address, max_size=None, legacy=True), 0
        self.events: list[dict[str, Any]] = []
        """Events that the browser has sent: errors of the page, and what it loads."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        self.call("Page.navigate", url=url)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == self._calls:
                assert "error" not in message, f"{method}: {message}"
                return message["result"]
            self.events.append(message)

    def js(self, expression: str) -> Any:
        """The value of an expression; if it is a promise, the value that it resolves to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = SECONDS) -> Any:
        """Waits until an expression is true, and returns its value. Until the page is loaded, an expression may fail."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()")):
            assert time.monotonic() < deadline, f"{expression} did not come true; the page says: {self.js('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.js(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({found}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile)

    def theme(self, name: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self) -> bytes:
        """The visible page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[str]:
        """Errors that the page has thrown, or that the browser has found in it."""
        self.js("0")
        told = [message["params"] for message in self.events if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [json.dumps(each) for each in told if each.get("entry", {}).get("level", "error") == "error"]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Page.close")
        self._socket.close()
