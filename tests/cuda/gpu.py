"""The ops on a GPU, with the same calls as the emulator's, for tests whose tensors are on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from emulated import AbiError
from rule import name_of
from torch import Tensor

from lolrt import _core

# As in a descriptor in C whose fields are not set.
_UNSET: dict[str, dict[str, Any]] = {
    "kv_write": dict.fromkeys(("q", "k", "v", "q_weight", "k_weight", "rotation", "q_out", "pages", "page_table"))
    | {"eps": 0.0, "rotation_first_channel": 0},
    "frame_attention": dict.fromkeys(("rotation", "bias", "mass")) | {"scale": 0.0},
    "modulated_norm": dict.fromkeys(("residual", "gate")) | {"eps": 0.0},
    "gelu": {},
    "sampler_step": {"noise": None, "after": 0.0},
}


class Gpu:
    """Copies the inputs of a call to the device and back, whole storages at a time, so that strides, data beside a tensor and shared
    memory stay as they are. device: "cpu" calls the CPU's kernels, to test this class itself."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def page_elements(self, dtype: torch.dtype, tokens: int, heads: int, dim: int) -> int:
        return _core.page_elements(name_of(dtype), tokens, heads, dim, self._device)

    def kv_write(self, **arguments: Any) -> None:
        self._call("kv_write", arguments)

    def frame_attention(self, **arguments: Any) -> None:
        self._call("frame_attention", arguments)

    def modulated_norm(self, **arguments: Any) -> None:
        self._call("modulated_norm", arguments)

    def gelu(self, x: Tensor) -> None:
        self._call("gelu", {"x": x})

    def sampler_step(self, **arguments: Any) -> None:
        self._call("sampler_step", arguments)

    def _call(self, op: str, arguments: dict[str, Any]) -> None:
        carried: dict[int, tuple[Tensor, Tensor]] = {}  # by address: the bytes of a storage on the CPU, and on the device

        def there(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in carried:
                here = torch.empty(0, dtype=torch.uint8).set_(storage)
                carried[storage.data_ptr()] = here, here.to(self._device, copy=True)
            copy = carried[storage.data_ptr()][1].untyped_storage()
            return torch.empty(0, dtype=x.dtype, device=self._device).set_(copy, x.storage_offset(), x.shape, x.stride())

        given = {name: there(x) if isinstance(x, Tensor) else x for name, x in (_UNSET[op] | arguments).items()}
        try:
            if op == "frame_attention":
                asked = {name: x for name, x in given.items() if name != "scale"}
                given["workspace"] = torch.empty(_core.frame_attention_workspace(**asked), dtype=torch.uint8, device=self._device)
            stream = torch.cuda.current_stream().cuda_stream if self._device == "cuda" else 0
            getattr(_core, op)(**given, stream=stream)
        except (ValueError, RuntimeError) as error:
            raise AbiError(2 if isinstance(error, _core.UnsupportedError) else 1, str(error)) from error
        for here, copy in carried.values():
            here.copy_(copy)
