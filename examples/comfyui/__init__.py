"""The nodes of lolrt for ComfyUI, which looks for them here when this folder is in its custom_nodes."""

from lolrt.comfyui import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
from lolrt.comfyui import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
