"""What deploy/ has for those who run a server: that it is valid, and names what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lolrt.cli import main
from lolrt.serve.app import make_app
from lolrt.serve.server import GRACE_SECONDS
from lolrt.serve.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = DEPLOY / "kubernetes" / "serve.yaml"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
# A metric with its labels, in an expression; and what else may stand there.
SELECTOR = re.compile(r"\b([a-z_][\w:]*)(?:\{([^}]*)\})?(?=[\s\[),]|$)")
WORDS = {"by", "sum", "rate", "increase", "le", "job", "instance"}


def tool(name: str) -> str:
    """The path of a program that the linters' group installs."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f"{name} is not installed: make dev")


@pytest.fixture(scope="module")
def metrics(quick) -> dict[str, set[str]]:
    """The series of /metrics, and the names of their labels."""
    app = make_app(quick, Settings(max_sessions=1))
    registry = app.state.sessions.metrics.registry
    labels = {
        name: set(of._labelnames) for of, names in registry._collector_to_names.items() if hasattr(of, "_labelnames") for name in names
    }
    found = {}
    for family in text_string_to_metric_families(app.state.sessions.metrics.text().decode()):
        base = family.name if family.name.startswith("process_") or family.type != "counter" else family.name.removesuffix("_total")
        for suffix in SUFFIXES[family.type] if not family.name.startswith("process_") else ("",):
            seen = {name for sample in family.samples for name in sample.labels}
            found[base + suffix] = seen | labels.get(base + suffix, set()) | ({"le"} if suffix == "_bucket" else set())
    return found


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics of an expression, each with the labels that it is selected by."""
    bare = re.sub(r"by \([^)]*\)|\[\w+\]", "", expression)
    found = re.findall(r"([a-zA-Z_][\w:]*)\s*(?:\{([^}]*)\})?(?!\w*\()", bare)
    return [
        (name, set(re.findall(r"(\w+)\s*=", inside))) for name, inside in found if name not in WORDS and not re.search(rf"\b{name}\(", bare)
    ]


def expressions_of_rules() -> list[tuple[str, str]]:
    rules = [rule for group in yaml.safe_load((DEPLOY / "monitoring" / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules]


def expressions_of_dashboard() -> list[tuple[str, str]]:
    panels = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_name_metrics_that_there_are(metrics):
    recorded = {name for name, _ in expressions_of_rules() if ":" in name}
    wrong, named = [], set()
    for title, expression in expressions_of_rules() + expressions_of_dashboard():
        assert expression.count("(") == expression.count(")"), title
        found = selectors(expression)
        assert found, title
        for name, labels in found:
            named.add(name)
            own = labels - {"instance", "job"}
            if name not in recorded | {"up"} and (name not in metrics or not own <= metrics[name]):
                wrong.append(f"{title}: {name} {own}")
    assert not wrong
    assert len(named & metrics.keys()) > 15


def test_a_metric_that_is_not_there_would_be_seen(metrics):
    assert selectors('sum by (le) (rate(lolrt_no_bucket{x="y"}[5m])) / lolrt_pages') == [("lolrt_no_bucket", {"x"}), ("lolrt_pages", set())]
    assert "lolrt_no_bucket" not in metrics and metrics["lolrt_stage_seconds_bucket"] >= {"stage", "le"}


def test_panels_of_the_dashboard_do_not_overlap():
    board = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("change", ["", "containerPort: 8000", "periodSeconds: 5"])
def test_manifests_are_valid(tmp_path, change):
    """By the schemas of Kubernetes; and what is wrong in them is seen."""
    text = MANIFESTS.read_text()
    assert change in text
    (tmp_path / "serve.yaml").write_text(text.replace(change, change.replace(": ", "s: ")) if change else text)
    run = subprocess.run([tool("kubernetes-validate"), "--strict", tmp_path / "serve.yaml"], capture_output=True, text=True)
    assert (run.returncode == 0) == (not change), run.stdout + run.stderr


def manifest(kind: str) -> dict[str, Any]:
    return next(one for one in yaml.safe_load_all(MANIFESTS.read_text()) if one["kind"] == kind)


def test_the_command_of_the_manifest_and_of_the_image_is_one_that_there_is(monkeypatch):
    """With all options as they stand, up to where the model is loaded."""
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    image = json.loads(re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[1])
    seen = []
    monkeypatch.setattr("lolrt.cli.serve.run", lambda arguments: seen.append(arguments))
    for command in (pod["containers"][0]["args"], image):
        assert main(command) in (0, None)
    assert [str(one.state) for one in seen] == ["/state", "/state"]
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for one in seen:
        assert str(one.state) in mounts and str(one.token_file.parent) in mounts
    assert pod["terminationGracePeriodSeconds"] > 10 * GRACE_SECONDS
    assert pod["containers"][0]["ports"][0]["containerPort"] == seen[1].port


def test_probes_ask_what_the_server_answers(quick):
    container = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    paths = {route.path for route in make_app(quick, Settings(max_sessions=1)).routes if hasattr(route, "path")}
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} <= paths


def test_the_dockerfile_passes_its_linter():
    run = subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
