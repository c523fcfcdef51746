"""One name, one default and one list of choices for each setting: in the dataclasses, as options and in the text of a policy."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import lolrt
from lolrt import cli
from lolrt.cli.options import field_values
from lolrt.fields import fields_of
from lolrt.lab.policy import Policy
from lolrt.pipeline import WINDOW_SETTINGS

DATACLASSES = {"Rope": lolrt.Rope, "Window": lolrt.Window, "SinkGate": lolrt.SinkGate, "Sampler": lolrt.Sampler}
FIELDS = [(owner, field) for owner, kind in DATACLASSES.items() for field in dataclasses.fields(kind) if field.name != "gate"]
# What options were called before they were made of the fields.
OPTIONS = {
    "Rope": {
        "--sigma": "sigma", "--jitter-seed": "jitter_seed", "--spread": "spread", "--scope": "scope", "--positions": "positions",
        "--anchor": "anchor_frames", "--frequencies": "frequencies", "--stretch": "stretch", "--length": "length_frames",
    },
    "Window": {"--sinks": "sink_frames", "--recent": "recent_frames", "--recall": "recall_frames", "--store": "store_frames"},
    "SinkGate": {"--sink-bias": "bias", "--gate": "when", "--head-share": "head_share"},
}  # fmt: skip
# A value that is not the default, where a fixed rule does not find one that the dataclass takes.
OTHERS = {"bases": "2000:18000", "stretch": "2", "chunk_frames": "2", "timesteps": "750:250", "first_timesteps": "750:250"}


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options by each of their names."""
    top = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: action for action in top.choices[command]._actions for name in action.option_strings}


def choices_of(owner: str, name: str) -> tuple[str, ...]:
    hint = get_type_hints(DATACLASSES[owner])[name]
    return get_args(hint) if get_origin(hint) is Literal else ()


def other_value(owner: str, field: dataclasses.Field[Any]) -> str:
    if field.name in OTHERS:
        return OTHERS[field.name]
    choices = [choice for choice in choices_of(owner, field.name) if choice != field.default]
    return choices[0] if choices else str(field.default + 1 if isinstance(field.default, int) else field.default / 2 or 0.5)


@pytest.mark.parametrize("owner", DATACLASSES)
def test_the_source_says_what_the_dataclass_holds(owner):
    read = {field.name: (field.default, field.choices) for field in fields_of(owner)}
    assert read == {field.name: (field.default, choices_of(owner, field.name)) for kind, field in FIELDS if kind == owner}
    assert all(field.help and not field.help.endswith(".") for field in fields_of(owner))


def test_no_two_settings_have_a_name_in_common():
    names = [name for owner in DATACLASSES for field in fields_of(owner) for name in field.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("command, owners", [("generate", ("Rope", "Window", "SinkGate")), ("info", ("Window",))])
def test_an_option_has_the_default_and_the_choices_of_its_field(command, owners):
    options = options_of(command)
    for owner, field in FIELDS:
        if owner in owners:
            option = options[f"--{field.name.replace('_', '-')}"]
            default = None if owner == "Rope" or field.name in WINDOW_SETTINGS else field.default  # a model may have its own
            assert (option.dest, option.default, tuple(option.choices or ())) == (field.name, default, choices_of(owner, field.name))
    for owner in owners:
        assert {name: options[name].dest for name in OPTIONS[owner]} == OPTIONS[owner]


def test_a_command_without_options_makes_the_defaults():
    arguments = cli.parser().parse_args(["generate", "a prompt", "-o", "v.mp4"])
    for owner in "Window", "SinkGate":
        assert DATACLASSES[owner](**field_values(arguments, owner)) == DATACLASSES[owner]()
    for owner in "Rope", "Sampler":
        assert field_values(arguments, owner) == {}  # the model's own


@pytest.mark.parametrize("owner, field", FIELDS, ids=lambda value: getattr(value, "name", value))
def test_all_that_take_a_setting_take_it_by_the_same_names(owner, field):
    text = other_value(owner, field)
    made = set()
    for name in next(known.names for known in fields_of(owner) if known.name == field.name):
        option = f"--{name.replace('_', '-')}={text}"
        values = field_values(cli.parser().parse_args(["generate", "a prompt", "-o", "v.mp4", option]), owner)
        made.add(repr(DATACLASSES[owner](**values)))
        if owner != "Sampler":
            policy = Policy.parse(f"{name}={text}")
            made.add(repr({"Rope": policy.rope, "Window": policy.window, "SinkGate": policy.window.gate}[owner]))
    assert len(made) == 1 and made != {repr(DATACLASSES[owner]())}


def test_help_and_version_do_not_import_torch():
    code = "import sys; from lolrt import cli; cli.parser().format_help(); assert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
