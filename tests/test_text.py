"""The vocabulary encoder: what it accepts, and its error for a prompt with unknown words."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.text.encoder import VocabularyEncoder

GROUPS = {"colour": ["red", "blue"], "object": ["ball"], "filler": ["a", "the"]}
WORDS = ["red", "blue", "ball"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.json").write_text(json.dumps({"groups": GROUPS, "words": WORDS}))
    save_file({"embedding.weight": torch.eye(3, 4)}, tmp_path / "text.safetensors")
    return tmp_path


def test_rows_are_those_of_the_words_that_say_something(folder):
    encode = VocabularyEncoder(folder)
    assert torch.equal(encode("a BLUE ball!"), torch.eye(3, 4)[1:])
    assert torch.equal(encode("the ball, the blue ball"), encode("a blue ball"))


@pytest.mark.parametrize(
    "prompt, hints",
    [
        ("a green ball", ["'green'", "colour: red blue", "object: ball", "filler: a the"]),
        ("a red blue ball", ["more than one colour: blue, red"]),
        ("a the", ["names nothing"]),
        ("", ["names nothing"]),
    ],
)
def test_prompts_that_cannot_be_drawn(prompt, hints, folder):
    with pytest.raises(lolrt.PromptError) as error:
        VocabularyEncoder(folder)(prompt)
    assert all(hint in str(error.value) for hint in hints)


def test_a_table_of_another_model_is_refused(folder):
    save_file({"embedding.weight": torch.eye(5, 4)}, folder / "text.safetensors")
    with pytest.raises(lolrt.CheckpointError, match="3 words and 5 rows"):
        VocabularyEncoder(folder)


@pytest.mark.parametrize("missing", ["groups", "words"])
def test_a_vocabulary_without_a_part_is_refused(missing, folder):
    whole = {"groups": GROUPS, "words": WORDS}
    del whole[missing]
    (folder / "text.json").write_text(json.dumps(whole))
    with pytest.raises(lolrt.CheckpointError, match=f"text.json lacks '{missing}'"):
        VocabularyEncoder(folder)


def test_a_vocabulary_without_its_table_is_refused(folder):
    save_file({"weight": torch.eye(3, 4)}, folder / "text.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"text\.safetensors lacks 'embedding.weight'"):
        VocabularyEncoder(folder)


def test_every_example_prompt_of_the_embedded_model_is_known(tiny):
    for prompt in tiny.example_prompts:
        rows = tiny.encode_text(prompt)
        assert 3 <= len(rows) <= tiny.dit.config.text_len and rows.shape[1] == tiny.dit.config.text_dim
