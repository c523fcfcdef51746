"""Uses Matplotlib without a display, and embeds pictures in an HTML page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from lolrt.errors import Error

MISSING = "the laboratory's {} needs {}: pip install 'lolrt[lab]'"


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    try:
        import matplotlib
    except ImportError as error:
        raise Error(MISSING.format("plots", "matplotlib")) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def inline_figure(figure: Any) -> str:
    """A matplotlib figure as an <img> element; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    pyplot().close(figure)
    return _element(buffer, "png")


def inline_image(pixels: np.ndarray) -> str:
    """uint8 [height, width, 3] as an <img> element."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Error(MISSING.format("contact sheets", "Pillow")) from error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=88)
    return _element(buffer, "jpeg")


def _element(buffer: io.BytesIO, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}">'
