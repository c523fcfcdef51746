"""The names of adapter tensors of a DiT: maps the names of every known trainer to a layer of the model and a part of an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lolrt.checkpoint.names import modules

# The prefixes that wrappers, pipelines and trainers put before a layer's name. In names with underscores instead of dots, the trainer's
# mark comes first.
FRONT = re.compile(r"(?:(?:base_model|model|module|net|diffusion_model|transformer|unet|pipe|dit|_orig_mod|_fsdp_wrapped_module)\.)+")
UNDERSCORED = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_+(?:(?:model|diffusion_model|transformer)_)*")

# The suffixes of names, and the part of an adapter that each means. The adapter's own name may be inside: lora_A.default.weight.
ENDS = (
    (r"\.lora_(?:A|down)(?:\.\w+)?\.weight|\.lora_(?:A|down)|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight", "lora_A"),
    (r"\.lora_(?:B|up)(?:\.\w+)?\.weight|\.lora_(?:B|up)|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight", "lora_B"),
    (r"\.lora_(?:B|up)(?:\.\w+)?\.bias", "lora_B.bias"),
    (r"\.lora_magnitude_vector(?:\.\w+)*|\.dora_scale", "magnitude"),
    *((rf"\.{part}", part) for part in ("alpha", "diff", "diff_b", "diff_m")),
    *((rf"\.hada_w{i}_{side}", f"hada_w{i}_{side}") for i in (1, 2) for side in "ab"),
    *((rf"\.lokr_w{i}{side}", f"lokr_w{i}{side}") for i in (1, 2) for side in ("", "_a", "_b")),
)
PARTS = tuple(part for _, part in ENDS)
KNOWN = [(re.compile(rf"(?P<layer>.+?)(?:{end})", re.DOTALL), part) for end, part in ENDS]
# Names that also belong to an adapter, but are not supported.
OTHER = re.compile(r"(?P<layer>.+?)\.(?P<part>(?:lora_|hada_|lokr_|oft_|boft_|glora_|vera_).+)", re.DOTALL)


def adapters(names: Iterable[str]) -> dict[str, str]:
    """Maps the names of adapter tensors, in any known layout, to `<Wan's layer>.<part>`; the part is one of `PARTS`.

    An unknown layer or part keeps its name. Names of other tensors are left out.
    """
    found = {name: split for name in names if (split := _split(name))}
    layers = dict(_layers(layer for layer, _ in found.values()))
    renamed = {}
    for name, (layer, part) in found.items():
        bare = FRONT.sub("", layer, count=1) if FRONT.match(layer) else layer
        marked = UNDERSCORED.match(bare)
        renamed[name] = f"{layers.get(bare[marked.end() :] if marked else bare, bare)}.{part}"
    return renamed


def _split(name: str) -> tuple[str, str] | None:
    """The layer of a tensor, as written, and the part of the adapter."""
    for pattern, part in KNOWN:
        if match := pattern.fullmatch(name):
            return match["layer"], part
    other = OTHER.fullmatch(name)
    return (other["layer"], other["part"]) if other else None


def _layers(written: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every spelling of the layers of a DiT, with Wan's name of the layer. The names given show the number of blocks."""
    numbers = {match[1] for layer in written if (match := re.search(r"(?:^|[._])blocks[._](\d{1,4})(?=[._])", layer))}
    for wan, other in modules("dit", [f"blocks.{number}." for number in numbers]):
        for spelling in (wan, other):
            yield spelling, wan
            yield spelling.replace(".", "_"), wan
