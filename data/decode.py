"""Image files to pixels: simplejpeg for the ordinary JPEG, Pillow for everything else; both ignore EXIF rotation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)
MAX_PIXELS = 90_000_000  # a header that promises more is not believed: 65000x65000 would take 12.8 GB to decode
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow could open others, some of them by starting programs
DECODERS = ("auto", "simplejpeg", "pillow", "pil")


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an image too large to be meant."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"its header says {width}x{height} pixels, more than {MAX_PIXELS:,}")


def open_rgb(content: bytes) -> Image.Image:
    """Decode with Pillow to an RGB image: gray is repeated, CMYK converted, alpha dropped."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of, check_size refuses
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    with image:
        check_size(image.height, image.width)
        return image.convert("RGB")


def with_pillow(content: bytes) -> Pixels:
    """(H, W, 3) pixels of any known image file."""
    return np.array(open_rgb(content))


def with_simplejpeg(content: bytes) -> Pixels:
    """(H, W, 3) pixels; the same as `with_pillow`, sooner where the file is a three-component JPEG without a flaw."""
    import simplejpeg

    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors == "YCbCr" and height * width <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:
        pass  # not a JPEG, or a damaged one: Pillow decides
    return with_pillow(content)


def pick_decoder(name: str) -> Callable[[bytes], Pixels]:
    """The decoder of a name: `auto` is simplejpeg where it is installed, else Pillow.

    Raises:
        ValueError: for an unknown name, or `simplejpeg` where it is not installed.
    """
    if name not in DECODERS:
        raise ValueError(f"unknown decoder '{name}', choose one of {', '.join(DECODERS)}")
    installed = find_spec("simplejpeg") is not None
    if name == "simplejpeg" and not installed:
        raise ValueError("decoder simplejpeg is not installed: pip install simplejpeg, or use decoder=auto")
    return with_simplejpeg if name in ("auto", "simplejpeg") and installed else with_pillow
