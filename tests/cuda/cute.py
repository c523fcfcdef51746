"""Layouts of instructions as CuTe, NVIDIA's library of layouts, defines them: read from the headers of the wheel nvidia-cutlass (BSD-3).

Its pycute evaluates them: a layout is a function from coordinates to an index.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from typing import Any

import pytest

pycute = pytest.importorskip("pycute", reason="there is no CuTe: pip install --no-deps nvidia-cutlass==4.2.0.0")


def header(name: str) -> str:
    """The text of cute/atom/NAME.hpp."""
    path = f"cutlass_library/source/include/cute/atom/{name}.hpp"
    with open(str(importlib.metadata.distribution("nvidia-cutlass").locate_file(path))) as file:
        return file.read()


def parse(text: str) -> Any:
    """Layout<Shape<_4, ..>, Stride<..>> as pycute's."""
    numbers = re.sub(r"(?:Layout|Shape|Stride)\s*<", "(", text).replace(">", ",)").replace("_", "")
    return pycute.Layout(*ast.literal_eval(numbers))


def layout(text: str, struct: str, field: str) -> Any:
    """`using FIELD = ..` of a struct, or of the struct that it inherits from; names that the file gives to layouts are resolved."""
    match = re.search(rf"struct {re.escape(struct)}\s*(?::\s*([\w<>]+))?\s*\{{(.*?)\n\}};", text, re.DOTALL)
    assert match, f"CuTe has no {struct}"
    found = re.search(rf"using {field}\s*=\s*(.*?);", match[2], re.DOTALL)
    if found is None:
        return layout(text, match[1], field)
    named = re.search(rf"using {found[1]}\s*=\s*(.*?);", text, re.DOTALL) if re.fullmatch(r"\w+", found[1]) else found
    return parse(named[1])


def named_layout(text: str, name: str, columns: int = 0) -> Any:
    """`using NAME = Layout<..>` outside structs; in a template, for this number of columns."""
    match = re.search(rf"using {name}\s*=\s*(Layout<.*?);", text, re.DOTALL)
    assert match, f"CuTe has no {name}"
    return parse(match[1].replace("Int<N/8>", str(columns // 8)))


def swizzle(text: str, name: str) -> Any:
    """`using NAME = ComposedLayout<Swizzle<..>, ..>`."""
    match = re.search(rf"using {name}\s*=\s*ComposedLayout<Swizzle<(\d+),(\d+),(\d+)>", text)
    assert match, f"CuTe has no {name}"
    return pycute.Swizzle(*map(int, match.groups()))
