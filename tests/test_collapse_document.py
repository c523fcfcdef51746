"""docs/collapse.md and docs/collapse-journey.md say what the results beside them say: other results give other sentences."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lolrt
from lolrt.lab import plans
from lolrt.lab.phase import phase_table
from lolrt.lab.results import Cell, Result
from lolrt.positions.rope import Rope

pytestmark = pytest.mark.whole

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))
MODULES = ("collapse", "collapse_claims", "collapse_conclusions", "collapse_journey")
collapse, claims, conclusions, journey = map(importlib.import_module, MODULES)

Numbers = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def kept() -> tuple[dict[str, Result], Result]:
    return collapse.read()


def changed(kept: tuple[dict[str, Result], Result], numbers: Numbers) -> tuple[dict[str, Result], Result]:
    def of(result: Result) -> Result:
        cells = {
            name: replace(cell, numbers={what: numbers(values) for what, values in cell.numbers.items()})
            for name, cell in result.cells.items()
        }
        return replace(result, cells=cells)

    results, decoded = kept
    return {name: of(result) for name, result in results.items()}, of(decoded)


def swapped(results: dict[str, Result], one: str, other: str) -> dict[str, Result]:
    def of(cells: dict[str, Cell]) -> dict[str, Cell]:
        return {**cells, one: cells[other], other: cells[one]} if one in cells else cells

    return {name: replace(result, cells=of(result.cells)) for name, result in results.items()}


def sentences(text: str, number: str = "#") -> str:
    """The sentences of the conclusions: on one line, with `number` for every number, and without the summary, which has its own test."""
    return re.sub(r"[-+]?\d[\d.]*\d|\d", number, re.sub(r"\s+", " ", text.split("- **Plain RoPE, the dip.**")[1]))


def summary(text: str) -> dict[str, str]:
    """For each place, what falls back less than drawn jitter there."""
    first = re.sub(r"\s+", " ", text).partition(", ")[2].partition(". - **")[0]
    return dict(part.split(": ") for part in first.split("; "))


def verbs() -> list[tuple[str, str]]:
    """Verbs for a lower and a higher measure, in singular and plural."""
    return [(lower.format(s), higher.format(s)) for _, lower, higher in claims.WORDS.values() for s in ("s", "")]


def test_the_document_is_made_of_what_is_kept(kept):
    results, decoded = kept
    assert collapse.document(results, decoded) == (DOCS / "collapse.md").read_text()
    kernel = phase_table(Rope(sigma=0.0).radians(1, 1, collapse.PAIRS)[0], 400).predicted()
    for result in (*results.values(), decoded):
        assert result.predicted == kernel and result.frames == collapse.FRAMES
    for result in results.values():
        setting = plans.Setting(result.draws, result.frames, collapse.LAYERS, collapse.HEADS, collapse.PAIRS)
        asked = plans.EXPERIMENTS[result.name].cells(setting)
        assert all(cell.policies == asked[name] for name, cell in result.cells.items())


def test_the_page_of_journey_is_made_of_what_is_kept():
    results, decoded = journey.read()
    assert journey.document(results, decoded) == (DOCS / "collapse-journey.md").read_text()
    config = json.loads((Path(lolrt.__file__).parent / "_embedded" / "journey" / "config.json").read_text())
    for result in (*results.values(), decoded):
        assert result.model == "journey" and result.frames == collapse.FRAMES
    for result in results.values():
        setting = plans.Setting(result.draws, result.frames, config["num_layers"], config["num_heads"], collapse.PAIRS)
        asked = plans.EXPERIMENTS[result.name].cells(setting)
        assert all(cell.policies == asked[name] for name, cell in result.cells.items())


def test_the_interval_chooses_the_verb():
    """Made-up results with a known direction: a lower dip is a further fall, and a difference of means that the spread hides is no
    difference."""
    usual = np.full((1, 4), 0.5)
    spread = np.array([[0.8, 0.2, 0.8, 0.3]])  # its mean is higher, its interval contains that of `usual`
    made = {"plain": usual, "less": usual - 0.2, "more": usual + 0.2, "spread": spread}
    measures = ("dip_132", "dip_201", "rise_132", "rise_201", "motion", "dip_elsewhere")
    cells = {name: Cell(["sigma=0"], {what: values for what in measures[:-1]} | {measures[-1]: usual}) for name, values in made.items()}
    result = Result("rivals", "tiny", 240, 1, [], False, [("a car", i) for i in range(4)], [132, 201], cells)
    assert claims.said(result, claims.against(result, "plain", "dip")) == (
        "`less` (-0.20) falls back further than `plain`; `more` (+0.20) falls back less than `plain`; "
        "`spread` (+0.03) shows no significant difference in the dip from `plain`."
    )
    assert claims.said(result, claims.elsewhere(result)[1:3]) == (
        "`less` (-0.20) falls back further at 132 and 201 than elsewhere; `more` (+0.20) falls back less at 132 and 201 than elsewhere."
    )
    assert claims.said(result, claims.left(result, ["less", "more"], "dip")[::2]) == (
        "`less` (-0.20) falls back further at 132 than elsewhere; `more` (+0.20) falls back less at 132 than elsewhere."
    )
    assert claims.counted(result, claims.against(result, "plain", "rise")) == (
        "Of 3, 1 puts less mass on the sinks, 1 puts more mass on the sinks and 1 shows no significant difference in the mass on the sinks."
    )
    several = [claims.Comparison(name, "motion", "plain") for name in ("more", "more", "less")]
    assert (
        claims.said(result, several) == "`more` (+0.20) and `more` (+0.20) move more than `plain`; `less` (-0.20) moves less than `plain`."
    )


def test_the_opposite_results_make_the_opposite_sentences(kept):
    before, after = (sentences(conclusions.conclusions(*data)) for data in (kept, changed(kept, lambda values: -values)))
    opposite = {verb: other for pair in verbs() for verb, other in (pair, pair[::-1])}
    pattern = rf"\b({'|'.join(sorted(opposite, key=len, reverse=True))})\b"
    assert len(re.findall(pattern, before)) > 50
    assert after == re.sub(pattern, lambda verb: opposite[verb[0]], before)


def test_results_that_are_all_the_same_make_no_difference(kept):
    text = conclusions.conclusions(*changed(kept, np.ones_like))
    assert set(summary(text).values()) == {"none"}
    found = sentences(text, "")
    assert not [verb for pair in verbs() for verb in pair if verb in found]
    assert found.count("no significant difference") > 30


def test_names_change_places_with_their_results(kept):
    results, decoded = kept

    def facts(results: dict[str, Result]) -> set[tuple[str, str]]:
        """What the text says about each rival, with the names in any order."""
        comparisons = [
            *claims.against(results["rivals"], "plain", "dip"),
            *claims.against(results["rivals"], claims.DRAWN, "dip"),
            *claims.against(results["rivals"], "plain", "motion"),
            *claims.at_own_frames(results["rivals"], "dip", "dip_elsewhere"),
        ]
        text = claims.said(results["rivals"], comparisons)
        found = set()
        for clause in text.removesuffix(".").split("; "):
            subjects, verb = re.fullmatch(r"(.*\(.*?\)) (.*)", clause).groups()
            found |= {(subject, verb_of_one(verb)) for subject in re.findall(r"`([^`]*)` \(", subjects)}
        return found

    def verb_of_one(verb: str) -> str:
        return re.sub(r"^(fall|move|show)s?\b", r"\1s", verb)

    names = {"PI": "RIFLEx", "RIFLEx": "PI"}
    before, after = facts(results), facts(swapped(results, "PI", "RIFLEx"))
    assert before != after == {(names.get(name, name), verb) for name, verb in before}
    gates = ("sinks shut where realigned", "sinks shut where synchronised")
    for data, best in ((results, gates[0]), (swapped(results, *gates), gates[1])):
        assert summary(conclusions.conclusions(data, decoded))["on both models"] == f"`{best}`"


NUMBER_WORDS = r"\b(two|three|four|five|six|seven|eight|nine|ten|twelve|twice|half|third|quarter)s?\b"
OUTCOMES = r"\b(falls? back|shallower|deeper|beats?|worse|better|best|higher|lower|less|more than|told apart|holds?|moves?)\b"


@pytest.mark.parametrize("name", MODULES)
def test_no_number_and_no_outcome_is_held_as_text(name):
    """Text inside functions holds neither. Constants of a module may, and there are few: the next test covers them."""
    functions = [node for node in ast.parse((DOCS / f"{name}.py").read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert functions
    for function in functions:
        nodes = list(ast.walk(function))
        docstrings = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        fields = [node for node in nodes if isinstance(node, ast.FormattedValue)]
        assert not [ast.unparse(field) for field in fields if isinstance(field.value, ast.Constant)]
        formats = {id(part) for field in fields if field.format_spec for part in ast.walk(field.format_spec)}
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in formats}
        held = [found[0] for text in texts - docstrings if (found := re.search(rf"\d|{NUMBER_WORDS}|{OUTCOMES}", text))]
        assert not held, f"{function.name} holds {held}"


def test_numbers_of_the_method_are_few():
    names = {}
    for module in (collapse, claims, conclusions, journey):
        tree = ast.parse(Path(module.__file__).read_text())
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and re.search(r"\d", ast.unparse(node.value))]
        names[module.__name__] = [name.id for node in assigned for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)]
    second = ["SECOND", "SECOND_VAE_MINUTES", "SECOND_STEPS", "SECOND_ERRORS", "SECOND_DECIBELS"]
    framewise = ["FRAMEWISE_STEPS", "FRAMEWISE_ERRORS"]
    model = ["FRAMES", "LAYERS", "HEADS", "PAIRS", "THETA", "WAN_LAYERS", "WAN_HEADS"]
    assert sorted(names.pop("collapse")) == sorted(
        ["PAPER", "ROLLOUT_SECONDS", *model, "LARGER", "CERTAINTY", "DYNAMIC_PIXELS", *second, *framewise, "PUBLISHED"]
    )
    assert names == {"collapse_claims": ["DRAWN", "EVEN"], "collapse_conclusions": ["SNAP_BACK_P"], "collapse_journey": ["PAPER"]}
