"""The rules of names against the lists of the published models: every tensor of Wan2.1-T2V-1.3B, both ways, and every shape."""

from __future__ import annotations

import gzip

import pytest

from lolrt import DiTConfig, VAEConfig
from lolrt.checkpoint.names import MOST_LAYERS, to_diffusers, to_wan
from lolrt.checkpoint.shapes import TextEncoderConfig, dit_shapes, text_encoder_shapes, vae_shapes

PUBLISHED = {"dit": ("dit_1.3b", 825), "vae": ("vae", 194), "text_encoder": ("umt5", 242)}


@pytest.fixture(params=PUBLISHED)
def published(request, data) -> tuple[str, dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """Kind, Wan's name -> diffusers' names, Wan's name -> shape."""
    name, count = PUBLISHED[request.param]
    rows = [line.split("\t") for line in gzip.decompress((data / f"keymap_{name}.tsv.gz").read_bytes()).decode().splitlines()]
    assert len(rows) == count
    shapes = {wan: tuple(map(int, shape.split("x"))) for wan, _, shape in rows}
    return request.param, {wan: tuple(other.split(",")) for wan, other, _ in rows}, shapes


def test_every_name_both_ways(published):
    kind, table, _ = published
    assert to_diffusers(kind, table) == table
    assert to_wan(kind, [other for others in table.values() for other in others]) == {
        other: wan for wan, others in table.items() for other in others
    }


def test_every_shape(published):
    kind, _, shapes = published
    ours = {
        "dit": lambda: dit_shapes(DiTConfig()),
        "vae": lambda: vae_shapes(VAEConfig()),
        "text_encoder": lambda: text_encoder_shapes(TextEncoderConfig()),
    }[kind]()
    assert ours == shapes


def test_names_that_are_no_part_of_the_model_are_left_out():
    assert to_wan("dit", ["blocks.0.attn1.to_q.weight", "blocks.0.attn1.to_q.scale", "blocks.0.attn3.to_q.weight"]) == {
        "blocks.0.attn1.to_q.weight": "blocks.0.self_attn.q.weight"
    }
    assert to_diffusers("dit", ["freqs", "modulation", "blocks.0.modulation", "blocks.0.norm3.modulation"]) == {
        "blocks.0.modulation": ("blocks.0.scale_shift_table",)
    }


def test_a_huge_number_in_a_name_costs_nothing():
    names = ["decoder.up_blocks.9999.resnets.9999.conv1.weight", f"decoder.upsamples.{MOST_LAYERS}.resample.1.weight", f"blocks.{10**30}.x"]
    for kind in PUBLISHED:
        assert to_wan(kind, names) == {}
