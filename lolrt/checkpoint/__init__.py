"""Checkpoints: recognised from their tensors' names, mapped, checked in full, and read under Wan's names. See docs/checkpoints.md."""

from lolrt.checkpoint.formats import Component as Component
from lolrt.checkpoint.load import assign as assign
from lolrt.checkpoint.load import load_dit as load_dit
from lolrt.checkpoint.load import load_taehv as load_taehv
from lolrt.checkpoint.load import load_vae as load_vae
from lolrt.checkpoint.names import to_diffusers as to_diffusers
from lolrt.checkpoint.parts import Parts as Parts
from lolrt.checkpoint.parts import find_parts as find_parts
from lolrt.checkpoint.parts import read_component as read_component
from lolrt.checkpoint.safetensors_file import read_safetensors as read_safetensors
from lolrt.checkpoint.shapes import read_config as read_config
from lolrt.checkpoint.shapes import read_json as read_json
from lolrt.checkpoint.shapes import unfilled as unfilled
