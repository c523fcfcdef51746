"""Adapters that clients of a server choose for a session."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from serving import PROMPT, Server, Viewer

import lolrt
from lolrt.cli import main
from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.factory import Factory
from lolrt.serve.settings import Settings

pytestmark = pytest.mark.whole


def fragments(model: Path, lora: str | None, count: int) -> list[str]:
    """The hashes of a session's first fragments, as a model makes them that was loaded with these adapters."""
    pipe = lolrt.load(model, lora=lora)
    stream, encoder = pipe.stream(PROMPT, seed=3), ChunkEncoder(pipe.height, pipe.width, pipe.fps, Settings().crf)
    return [hashlib.sha256(encoder.encode(next(stream).frames)).hexdigest() for _ in range(count)]


def watched(server: Server, id: str, first: int, count: int) -> list[str]:
    with Viewer(server, id, first) as viewer:
        return [hashlib.sha256(data).hexdigest() for _, data in viewer.chunks(count)]


def test_sessions_have_the_adapters_that_they_ask_for_and_keep_them(quick_model, styles, tmp_path, one_thread):
    """Each has the bits of a model that was loaded with them; also a branch, and after a kill."""
    options = ["--model", quick_model, "--threads", 1, "--state", tmp_path, "--save-every", 0.3, "--max-sessions", 3, "--max-loras", 1]
    offered = [option for name, path in styles.items() for option in ("--lora-module", f"{name}={path}")]
    oil = [{"name": "oil", "scale": 1 / 3}]  # more digits than a snapshot names
    with Server(*options, *offered) as server:
        assert server.json("GET", "/v1/models")["data"][0]["lora_modules"] == ["ink", "oil"]
        plain = server.open(lease_seconds=600)
        changed = server.open(lora=oil, lease_seconds=600)
        assert server.json("GET", f"/v1/sessions/{changed}")["lora"] == ["oil.safetensors:0.333333"]
        made = {id: watched(server, id, 0, 2) for id in (plain, changed)}
        status, _, refused = server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "lora": [{"name": "ink"}]})
        assert status == 429 and b"other choices of adapters" in refused
        status, _, refused = server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "lora": [{"name": "chalk"}]})
        assert status == 400 and b"it offers ink, oil" in refused
        assert server.ask("POST", "/v1/videos", {"prompt": PROMPT, "lora": {"name": "chalk"}})[0] == 400
        branch = server.json("POST", f"/v1/sessions/{changed}/branch", {"lease_seconds": 600})["id"]
        assert server.json("GET", f"/v1/sessions/{branch}")["lora"] == ["oil.safetensors:0.333333"]
        server.json("DELETE", f"/v1/sessions/{branch}")
        server.kill()
    with Server(*options, *offered) as server:
        for id in (plain, changed):
            made[id] += watched(server, id, 2, 3)
            server.json("DELETE", f"/v1/sessions/{id}")
        wanted = {"prompt": PROMPT, "session_id": "one", "lora": [{"name": "ink"}]}
        with ThreadPoolExecutor(2) as pool:  # while the adapters are merged for the first, the id is taken
            asked = [pool.submit(server.ask, "POST", "/v1/sessions", wanted) for _ in range(2)]
            assert sorted(one.result()[0] for one in asked) == [201, 409]
    assert made[plain] == fragments(quick_model, None, 5)
    assert made[changed] == fragments(quick_model, f"{styles['oil']}:0.333333", 5)


def test_the_servers_own_adapters_are_no_others(quick_model, styles):
    """A saved session names adapters by their files alone."""
    pipe = lolrt.load(quick_model, lora=styles["oil"])
    with pytest.raises(lolrt.Error, match=r"oil.safetensors is offered to clients, and is the name of a file that all sessions have"):
        Factory(pipe, Settings(lora_modules=styles), None)


def test_what_a_server_can_offer(styles, tmp_path, capsys):
    strange = tmp_path / "strange.safetensors"
    save_file({"blocks.99.ffn.0.diff": torch.zeros(1)}, strange)
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "oil.safetensors"
    same.write_bytes(styles["oil"].read_bytes())
    wrong = {
        "expected NAME=FILE": ["oil"],
        "with a name of letters": [f"../oil={styles['oil']}"],
        "does not exist": ["oil=nowhere.safetensors"],
        "the model has no blocks.99": [f"strange={strange}"],
        "another one has this name": [f"oil={styles['oil']}", f"oil={styles['ink']}"],
        "or a file of this name": [f"oil={styles['oil']}", f"second={same}"],
    }
    for told, modules in wrong.items():
        assert main(["serve", "--port", "0", *[part for module in modules for part in ("--lora-module", module)]]) == 2
        assert told in capsys.readouterr().err
