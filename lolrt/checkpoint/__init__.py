"""Checkpoints: a file is recognised by the names of its tensors, mapped into memory, checked completely, and read under Wan's names. See
docs/checkpoints.md."""

from lolrt.checkpoint.formats import Component as Component
from lolrt.checkpoint.load import assign as assign
from lolrt.checkpoint.load import load_dit as load_dit
from lolrt.checkpoint.load import load_taehv as load_taehv
from lolrt.checkpoint.load import load_vae as load_vae
from lolrt.checkpoint.model_files import ModelFiles as ModelFiles
from lolrt.checkpoint.model_files import find_files as find_files
from lolrt.checkpoint.model_files import read_component as read_component
from lolrt.checkpoint.names import to_diffusers as to_diffusers
from lolrt.checkpoint.safetensors_file import read_safetensors as read_safetensors
from lolrt.checkpoint.shapes import read_config as read_config
from lolrt.checkpoint.shapes import read_json as read_json
from lolrt.checkpoint.shapes import unfilled as unfilled
