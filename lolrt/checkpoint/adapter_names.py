"""Names of the tensors of adapters of a DiT: those of every trainer to the model's layers, and to the parts of an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lolrt.checkpoint.names import modules

# What wrappers, pipelines and trainers put before a layer's name; where a layer has underscores for dots, the trainer's mark comes first.
FRONT = re.compile(r"(?:(?:base_model|model|module|net|diffusion_model|transformer|unet|pipe|dit|_orig_mod|_fsdp_wrapped_module)\.)+")
UNDERSCORED = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_+(?:(?:model|diffusion_model|transformer)_)*")

# The ends of names, and the parts of an adapter that they stand for. An adapter's own name may stand inside: lora_A.default.weight.
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
# What belongs to an adapter too, and is not understood.
OTHER = re.compile(r"(?P<layer>.+?)\.(?P<part>(?:lora_|hada_|lokr_|oft_|boft_|glora_|vera_).+)", re.DOTALL)


def adapters(names: Iterable[str]) -> dict[str, str]:
    """Names of the tensors of adapters, in any known layout, to `<Wan's layer>.<part>`, the part being one of `PARTS`.

    A layer or a part that is not known keeps its name; names of other things are left out.
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
    """A tensor's layer, as it is written, and its part."""
    for pattern, part in KNOWN:
        if match := pattern.fullmatch(name):
            return match["layer"], part
    other = OTHER.fullmatch(name)
    return (other["layer"], other["part"]) if other else None


def _layers(written: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every spelling of the layers of a DiT with as many blocks as these names say, and Wan's name for it."""
    numbers = {match[1] for layer in written if (match := re.search(r"(?:^|[._])blocks[._](\d{1,4})(?=[._])", layer))}
    for wan, other in modules("dit", [f"blocks.{number}." for number in numbers]):
        for spelling in (wan, other):
            yield spelling, wan
            yield spelling.replace(".", "_"), wan
