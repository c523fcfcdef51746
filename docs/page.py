"""Makes docs/page.png, the picture of the page of `lolrt serve`, in Chromium: `python docs/page.py`. Takes a minute.

A stream, and a branch of it that was steered to another time of day, a few seconds after the first predicted return.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from browser import Browser  # noqa: E402
from serving import Server  # noqa: E402

PROMPT, OTHER = "a red balloon drifting over the hills at dusk", "a yellow balloon over the hills at night"
WIDTH, HEIGHT = 1360, 1104


def main() -> None:
    with tempfile.TemporaryDirectory() as profile, Server() as server:
        browser = Browser(Path(profile))
        page = browser.open(f"{server.address}/#streams={server.open(PROMPT, probe=True)}", WIDTH, HEIGHT)
        page.theme("dark")
        page.until("document.querySelector('.clock')?.textContent === '0:36'", 60)
        page.click("[data-do=branch]")
        page.until("document.querySelectorAll('.pane')[1]?.dataset.state === 'live'")
        page.js(f"document.getElementById('prompt').value = {OTHER!r}, document.getElementById('dock').requestSubmit()")
        page.js("document.activeElement.blur()")
        page.until("document.getElementById('progress').textContent.startsWith('On the screen')")
        time.sleep(6)
        page.js("scrollTo(0, 0)")
        Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(DOCS / "page.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
