"""The page of `lolrt serve` in a real browser: what it shows, compared by numbers in the pixels, and who can use it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from browser import Browser, Page, chromium
from proxy import Proxy
from serving import Server
from stamped_server import BITS, SIDE

import lolrt
from lolrt.session.snapshot import Snapshot

pytestmark = [
    pytest.mark.slow,  # a real browser runs in real time, and a busy machine cannot keep up with it
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt install chromium (CONTRIBUTING.md)"),
]

SCALE = 4  # of the encoded video
PROMPT = "a red car in the desert at noon"

PROBE = (Path(__file__).parent / "probe.js").read_text()
# A picture is shown as it comes, so what is on the screen is all there is.
PICTURE = "document.querySelector('.screen canvas')"
WITHOUT_SOURCE = "delete window.MediaSource; delete window.ManagedMediaSource;"
LIVE = "document.querySelectorAll('video')[{at}].currentTime > 0.2 && document.querySelectorAll('.pane')[{at}].dataset.state === 'live'"


STAMPED = (str(Path(__file__).with_name("stamped_server.py")),)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-sessions", 4, program=STAMPED) as server:
        yield server


def sessions(server: Server) -> list[str]:
    return [session["id"] for session in server.json("GET", "/v1/sessions")["data"]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def nothing_left(server) -> Iterator[None]:
    yield
    for id in sessions(server):
        server.json("DELETE", f"/v1/sessions/{id}")


@pytest.fixture
def page(server, browser, nothing_left) -> Iterator[Page]:
    """A page with its own stream, which plays."""
    page = browser.open(f"{server.address}/#streams={server.open(PROMPT)}")
    playing(page)
    yield page
    page.close()


def playing(page: Page, at: int = 0) -> None:
    page.until(LIVE.format(at=at))
    page.js(f"{{{PROBE}}}")


def steer(page: Page, prompt: str) -> None:
    """Changes the prompt by the keyboard."""
    page.js("document.getElementById('prompt').value = ''; document.getElementById('prompt').focus()")
    page.type(prompt)
    page.press("Enter", 13)


def text(page: Page, selector: str) -> str:
    return page.js(f"document.querySelector({selector!r}).textContent")


def consecutive(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_every_frame_comes_once_and_in_order(page):
    """During playback numbers only grow; in the buffer none is missing."""
    seen = page.js("shown(24)")
    assert seen == sorted(seen) and seen[-1] - seen[0] >= 20
    buffer = page.js("buffered(33)")
    assert buffer["ranges"] == 1 and consecutive(buffer["numbers"])
    assert not page.complaints()
    asked = [event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split("/")[2] for url in asked if not url.startswith("blob:")} == {page.js("location.host")}, "its server is all it needs"


def test_the_live_edge_is_kept_for_ten_minutes(server, page):
    """At the frame rate, with every picture in its place, and never further behind what the server has made than the player allows. A
    picture may be missing only where the browser says that it has dropped it, or has shown it without a word."""
    (id,) = sessions(server)
    most, begun = 0.0, time.monotonic()
    page.js("note()")
    while time.monotonic() < begun + 600:
        time.sleep(2)
        made = 12 * server.json("GET", f"/v1/sessions/{id}")["next_sequence"] - 3
        most = max(most, (made - page.js("look(video()).number")) / 16)
    noted = page.js("noted()")
    numbers = noted["numbers"]
    steps = np.diff(numbers)
    missing = int((steps - 1).sum())
    print(
        f"{len(numbers)} pictures in {noted['seconds']:.0f} s, {missing} missing, {noted['dropped']} dropped, {most:.2f} s behind at most"
    )
    assert (steps > 0).all() and missing <= noted["dropped"] + noted["presented"] - len(numbers)
    assert steps.sum() / 16 == pytest.approx(noted["seconds"], rel=0.01)
    assert most < 4.5
    assert page.js("video().buffered.length") == 1 and text(page, "#lost") in ("", "so far")


def test_a_new_prompt_is_on_the_screen_within_three_chunks(page):
    before, asked_at = page.js("brightness()"), page.js("look(video()).number")
    steer(page, "a red car in the desert at night")
    page.until("document.getElementById('progress').textContent.startsWith('On the screen after')")
    assert page.js("look(video()).number") - asked_at <= 3 * 12
    page.until("document.querySelector('.now').textContent === 'a red car in the desert at night'")
    page.until(f"brightness() < {before - 40}")
    assert page.js("[...document.querySelectorAll('#history button')].map((each) => each.textContent)") == [
        "a red car in the desert at night",
        PROMPT,
    ]
    assert float(text(page, "#latency")) > 0
    page.js("document.querySelectorAll('#history button')[1].click()")
    assert page.js("document.getElementById('prompt').value") == PROMPT


def test_a_prompt_that_the_model_does_not_know_is_told(page):
    steer(page, "a purple unicorn")
    page.until("document.getElementById('prompt-error').textContent.includes('does not know')")
    assert page.js("document.getElementById('prompt').getAttribute('aria-invalid')") == "true"
    assert page.js("document.activeElement.id") == "prompt"


def test_a_branch_is_another_future_of_the_same_past(server, page):
    """It continues from the present moment of the first stream, with the same frames until one of them is steered."""
    page.click("[data-do=branch]")
    playing(page, 1)
    assert len(sessions(server)) == 2 and text(page, "#prompt-label") == "What stream B shows next"
    page.until("common(0.5)")
    page.js("still(video(0)), still(video(1))")
    time_of_both = page.js("common(0.5)")
    one, other = (page.js(f"seek(video({at}), {time_of_both}).then(() => look(video({at})))") for at in (0, 1))
    assert one["number"] == other["number"] > 9
    assert np.abs(np.subtract(one["pixels"], other["pixels"])).mean() < 4
    steer(page, "a red car in the desert at night")
    page.until("document.querySelectorAll('#history li').length === 2")
    page.js("moving(video(0)), moving(video(1))")
    page.until("document.querySelectorAll('.now')[1].textContent.endsWith('night')")
    page.until("apart(look(video(0)).pixels, look(video(1)).pixels) > 25")
    page.click("[data-letter=A] [data-do=steer]")
    assert text(page, "#prompt-label") == "What stream A shows next"
    assert page.js("document.querySelectorAll('#history li').length") == 1


def test_reload_and_second_tab(server, browser, page):
    """Both show the same stream, which goes on."""
    before = page.js("look(video()).number")
    page.call("Page.reload")
    playing(page)
    page.until(f"look(video()).number > {before + 12}")
    second = browser.open(page.js("location.href"))
    playing(second)
    second.until(f"look(video()).number > {before + 24}")
    assert len(sessions(server)) == 1
    second.close()


def test_pause_and_go_on(page):
    page.click("[data-do=pause]")
    page.until("document.querySelector('.pane').dataset.state === 'paused'")
    page.until("video().ended")
    last = page.js("look(video()).number")
    assert text(page, "[data-do=pause]") == "Go on"
    page.click("[data-do=pause]")
    page.until(f"look(video()).number > {last + 12}")
    assert consecutive(page.js("buffered(25)")["numbers"])


def test_a_viewer_that_was_away_misses_nothing(server, browser):
    proxy = Proxy(int(server.address.rpartition(":")[2]))
    id = server.open(PROMPT)
    page = browser.open(f"http://127.0.0.1:{proxy.port}/#streams={id}")
    playing(page)
    begun = page.js("video().currentTime")
    proxy.breaks()
    page.until("document.querySelector('.veil-title').textContent === 'The server is gone'")
    assert page.js("document.querySelector('[data-do=branch]').disabled")
    page.until("video().paused")  # nothing is left
    proxy.mends()
    page.until("document.querySelector('.pane').dataset.state === 'live' && document.querySelector('.veil').hidden")
    page.until(f"video().buffered.end(0) > {begun + 2.5}")
    buffer = page.js(f"buffered(36, {begun})")
    assert buffer["ranges"] == 1 and consecutive(buffer["numbers"])
    # And a stream that is gone when it comes back is told as such.
    proxy.breaks()
    page.until("document.querySelector('.pane').dataset.state === 'broken'")
    server.json("DELETE", f"/v1/sessions/{id}")
    proxy.mends()
    page.until("document.querySelector('.veil-title').textContent === 'This stream has ended'")
    page.close()
    proxy.close()
    assert not sessions(server)


def test_a_stream_outlives_its_server(browser, tmp_path):
    """The server is killed and restarted; the page goes on with the next frame, on the same timeline."""
    kept = ["--state", tmp_path, "--save-every", "1"]
    with Server(*kept, program=STAMPED) as first:
        page = browser.open(f"{first.address}/#streams={first.open(PROMPT)}")
        playing(page)
        page.until("look(video()).number > 30")  # it was saved
        begun = page.js("video().currentTime")
        first.kill()
    page.until("document.querySelector('.pane').dataset.state === 'broken'")
    with Server(*kept, "--port", first.address.rpartition(":")[2], program=STAMPED):
        page.until(f"video().buffered.end(0) > {begun + 3}")
        page.until("document.querySelector('.pane').dataset.state === 'live'")
        buffer = page.js(f"buffered(40, {begun})")
        assert buffer["ranges"] == 1 and consecutive(buffer["numbers"])
        page.close()


def test_a_server_that_wants_a_token(browser, tmp_path):
    """The page asks for the token, or takes it from the address and removes it there; with it everything works as without."""
    token = tmp_path / "token"
    token.write_text("a-token-of-24-characters")
    token.chmod(0o600)
    with Server("--token-file", token, program=STAMPED) as server:
        page = browser.open(server.address)
        page.until("document.getElementById('token').open")
        assert page.js("document.activeElement.name") == "token"
        page.type("a-token-of-another-kind")
        page.press("Enter", 13)
        page.until("document.getElementById('token').open && document.getElementById('token-error').textContent")
        page.type(token.read_text())
        page.press("Enter", 13)
        playing(page)
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.click("[data-do=save]")
        assert Snapshot.read(downloaded(tmp_path, ".safetensors")).prompt
        other = browser.open(f"{server.address}/#token={token.read_text()}")
        playing(other)
        assert "token" not in other.js("location.href")
        other.close()
        page.close()


def test_a_stream_that_somebody_closes(server, page):
    (id,) = sessions(server)
    server.json("DELETE", f"/v1/sessions/{id}")
    page.until("document.querySelector('.veil-title').textContent === 'This stream has ended'")
    page.click("[data-do=close]")
    page.until("!document.getElementById('empty').hidden")
    page.click("#empty-new")
    page.until("document.getElementById('settings').open && document.activeElement.name === 'prompt'")
    page.js("document.querySelector('[name=seed]').value = 77, document.querySelector('[name=sigma]').value = 0")
    page.press("Enter", 13)
    playing(page)
    (session,) = server.json("GET", "/v1/sessions")["data"]
    assert (session["seed"], session["rope"]["sigma"]) == (77, 0)
    assert "seed 77, sigma 0" in text(page, "#about")


def test_a_stream_with_adapters(browser, quick_model, styles):
    modules = [option for name, path in styles.items() for option in ("--lora-module", f"{name}={path}")]
    with Server("--model", quick_model, *modules) as server:
        page = browser.open(f"{server.address}/#streams={server.open(PROMPT)}")
        playing(page)
        page.click("#new")
        assert page.js("[...document.querySelector('[name=lora]').options].map((each) => each.value)") == ["", "ink", "oil"]
        page.js("document.querySelector('[name=lora]').value = 'oil', document.querySelector('[name=scale]').value = 0.5")
        page.press("Enter", 13)
        page.until("document.querySelector('#about').textContent.endsWith('adapters oil.safetensors:0.5.')")
        playing(page)
        assert [session["lora"] for session in server.json("GET", "/v1/sessions")["data"]] == [[], ["oil.safetensors:0.5"]]
        page.close()


def test_an_address_without_a_stream(server, browser):
    """It opens a new stream, or, if there is no room for one, an existing one."""
    page = browser.open(server.address)
    playing(page)
    (own,) = sessions(server)
    assert page.js("location.hash").endswith(own) and text(page, "#notice") == ""
    others = {server.open(PROMPT) for _ in range(3)}
    page.call("Page.navigate", url=f"{server.address}/?again")
    page.until("document.getElementById('notice').textContent.startsWith('There is no room')")
    assert page.js("location.hash.slice(1).split('=')[1]") in others
    page.until("document.getElementById('others').checkVisibility()")
    assert page.js("document.getElementById('other').options.length") == 1 + 3
    page.close()


def test_what_is_saved(page, tmp_path, tiny):
    """A recording holds every frame from the next chunk on, and a snapshot is a valid one."""
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("[data-do=record]")
    begun = page.js("look(video()).number")
    page.until(f"look(video()).number > {begun + 30}")
    page.click("[data-do=record]")
    page.click("[data-do=save]")
    recording, snapshot = downloaded(tmp_path, ".mp4"), downloaded(tmp_path, ".safetensors")
    with av.open(str(recording)) as container:
        pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    bits = [picture[SIDE * SCALE // 2, SIDE * SCALE // 2 :: SIDE * SCALE][:BITS] > 127 for picture in pictures]
    numbers = [int("".join("01"[int(bit)] for bit in each), 2) for each in bits]
    assert len(numbers) >= 24 and consecutive(numbers)
    assert Snapshot.read(snapshot).prompt == PROMPT
    assert len(next(tiny.resume(snapshot)).frames) == 12


def downloaded(folder: Path, suffix: str) -> Path:
    deadline = time.monotonic() + 30
    while not (found := [path for path in folder.iterdir() if path.suffix == suffix]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


def test_a_return_that_the_page_names_is_the_highest_around_it(page):
    """Of plain RoPE, whose kernel has a ripple at frame 106 while it still falls; against the definition in docs/page.md."""
    config = lolrt.load("tiny").dit.config
    radians = lolrt.Rope(sigma=0).radians(config.num_layers, config.num_heads, config.temporal_pairs).reshape(-1, config.temporal_pairs)
    kernel = np.cos(np.arange(700)[:, None] * radians.astype(np.float64).reshape(1, -1)).mean(1)
    wanted = [frame for frame in range(101, 600) if kernel[frame] > 0.45 and kernel[frame] == kernel[frame - 24 : frame + 25].max()]
    named = page.js(f"import('./phase.js').then((phase) => new phase.PhaseKernel({radians.tolist()}).returns(0, 599))")
    assert named == wanted and wanted[:2] == [132, 201]


def test_who_can_use_it(page):
    """Names for people who do not see it, contrast (WCAG 2.2, AA) for people who see badly, keys, and the width of a phone."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = ("button", "textbox", "combobox", "spinbutton", "link", "image", "article", "Video")
    controls = [(role, name) for role, name in named if role in roles]
    assert len(controls) > 15 and all(name for _, name in controls), controls
    assert "What the video shows next" in [name for role, name in controls if role in ("textbox", "combobox")]
    assert next(name for role, name in named if role == "heading") == "lolrt"
    assert page.js("document.documentElement.lang") == "en"
    assert page.js("document.querySelectorAll('[aria-live=polite], [role=status]').length") >= 1
    page.js("document.activeElement.blur()")
    page.press("Tab", 9)
    assert page.js("document.activeElement.textContent") == "Skip to the prompt"
    page.press("Enter", 13)
    page.until("document.activeElement.id === 'prompt'")
    for theme in ("dark", "light"):
        page.theme(theme)
        time.sleep(0.3)  # colours change in a transition
        poor = [(ratio, text) for ratio, text in page.js("contrasts()") if ratio < 4.5]
        assert not poor, (theme, poor)
    for width in (320, 390, 768, 1920):
        page.resize(width, 800, mobile=width < 500)
        assert page.js("document.documentElement.scrollWidth") <= width, width
    assert not page.complaints()


def test_by_webrtc_the_page_shows_the_same(server, browser):
    """Frames come in order, and the instruments know which of them is on the screen. Pause, a prompt and a reload work as without
    WebRTC."""
    page = browser.open(f"{server.address}/#streams={server.open(PROMPT, probe=True)}")
    playing(page)
    page.js("document.getElementById('transport').value = 'webrtc'")
    page.js("document.getElementById('transport').dispatchEvent(new Event('change'))")
    page.until("document.querySelector('video').srcObject instanceof MediaStream")
    playing(page)
    assert page.js("document.getElementById('transport').value") == "webrtc"
    seen = page.js("shown(24)")
    assert seen == sorted(seen) and seen[-1] - seen[0] >= 20
    asked_at = page.js("look(video()).number")
    shown_at = round(16 * page.js("Number(document.querySelector('.clock').textContent.split(':')[1])"))
    assert abs(asked_at - shown_at) <= 17, "the clock is that of the picture, in whole seconds"
    before = page.js("brightness()")
    steer(page, "a red car in the desert at night")
    page.until("document.getElementById('progress').textContent.startsWith('On the screen after')")
    assert page.js("look(video()).number") - asked_at <= 4 * 12
    page.until(f"brightness() < {before - 40}")
    page.click("[data-do=pause]")
    page.until("document.querySelector('.pane').dataset.state === 'paused'")
    page.click("[data-do=pause]")
    page.until("document.querySelector('.pane').dataset.state === 'live'")
    last = page.js("look(video()).number")
    page.until(f"look(video()).number > {last + 12}")
    assert not page.complaints()
    page.js("localStorage.clear()")
    page.close()


@pytest.mark.parametrize("webrtc", [False, True], ids=["nothing better", "chosen"])
def test_without_media_source_the_page_shows_pictures(server, browser, webrtc):
    """Every frame once and in order, at the frame rate. A prompt, pause and the end work as with a buffer. With WebRTC pictures can be
    chosen."""
    id = server.open(PROMPT, probe=True)
    before = WITHOUT_SOURCE + ("localStorage.transport = 'pictures';" if webrtc else "delete window.RTCPeerConnection;")
    page = browser.open(f"{server.address}/#streams={id}", before=before)
    page.until(f"{PICTURE} && document.querySelector('.clock').textContent && document.querySelector('.pane').dataset.state === 'live'")
    page.js(f"{{{PROBE}}}")
    assert not page.js("document.querySelectorAll('video').length") and page.js("document.querySelector('[data-do=record]').hidden")
    ways = "[...document.getElementById('transport').options].filter((each) => !each.disabled).map((each) => each.value)"
    assert page.js(ways) == (["webrtc", "pictures"] if webrtc else ["pictures"])
    assert page.js("document.getElementById('transport').checkVisibility()") == webrtc
    seen, begun = page.js(f"drawn({PICTURE}, 49)"), time.monotonic()
    assert consecutive(seen["numbers"]) and seen["seconds"] > 0.9 * 48 / 16, "no faster than it is made for, however slow the machine"
    assert abs(seen["numbers"][-1] - page.js(f"look({PICTURE}).number")) <= 2 + 16 * (time.monotonic() - begun)
    shown_at = page.js("Number(document.querySelector('.clock').textContent.split(':')[1])")
    assert abs(page.js(f"look({PICTURE}).number") / 16 - shown_at) < 1.5, "the clock is that of the picture, in whole seconds"
    before_it = page.js(f"mean(look({PICTURE}).pixels)")
    steer(page, "a red car in the desert at night")
    page.until("document.getElementById('progress').textContent.startsWith('On the screen after')")
    page.until(f"mean(look({PICTURE}).pixels) < {before_it - 40}")
    assert page.js(f"{PICTURE}.getAttribute('aria-label')") == "Stream A: a red car in the desert at night"
    page.click("[data-do=pause]")
    page.until("document.querySelector('.pane').dataset.state === 'paused'")
    page.click("[data-do=pause]")
    page.until("document.querySelector('.pane').dataset.state === 'live'")
    last = page.js(f"look({PICTURE}).number")
    page.until(f"look({PICTURE}).number > {last + 12}")
    server.json("DELETE", f"/v1/sessions/{id}")
    page.until("document.querySelector('.veil-title').textContent === 'This stream has ended'")
    assert not page.complaints()
    page.js("localStorage.clear()")
    page.close()
