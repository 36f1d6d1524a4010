"""Image files to pixels: simplejpeg for the ordinary JPEG, Pillow for everything else; both ignore EXIF rotation."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)
Content = bytes | memoryview  # of an image file
Part = Callable[[int, int], tuple[int, int, int, int]]  # height and width to top, left, height, width
Decode = Callable[[Content, Part], Pixels]
MAX_PIXELS = 90_000_000  # a header that promises more is not believed: 65000x65000 would take 12.8 GB to decode
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow could open others, some of them by starting programs
GRAY = ("1", "L", "LA")
EIGHT_BITS = (*GRAY, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DECODERS = ("auto", "simplejpeg", "pillow", "pil")


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an image too large to be meant."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"its header says {width}x{height} pixels, more than {MAX_PIXELS:,}")


def open_rgb(content: Content) -> Image.Image:
    """Decode with Pillow to an RGB image: gray is repeated, CMYK converted, alpha dropped.

    Raises:
        ValueError, OSError, DecompressionBombError: for a file that is no such image, damaged or too large, or has more
            than 8 bits a channel.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of, check_size refuses
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    with image:
        check_size(image.height, image.width)
        if image.mode not in EIGHT_BITS:
            raise ValueError(f"pixels of mode {image.mode}, not 8 bits a channel")
        if image.mode == "RGB":  # convert would copy it
            image.load()
            return image
        return image.convert("RGB")


def whole(height: int, width: int) -> tuple[int, int, int, int]:
    """The part of an image that is all of it."""
    return 0, 0, height, width


def with_pillow(content: Content, part: Part = whole) -> Pixels:
    """(H, W, 3) pixels of a part of any known image file.

    The part is cut out before it becomes an array: that copy, of every pixel, is slow.
    """
    image = open_rgb(content)
    top, left, height, width = part(image.height, image.width)
    return np.array(image.crop((left, top, left + width, top + height)))


def with_simplejpeg(content: Content, part: Part = whole) -> Pixels:
    """(H, W, 3) pixels; the same as `with_pillow`, sooner where the file is a three-component JPEG without a flaw."""
    import simplejpeg

    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors == "YCbCr" and height * width <= MAX_PIXELS:
            pixels = simplejpeg.decode_jpeg(content, "RGB")
            top, left, height, width = part(height, width)
            return pixels[top : top + height, left : left + width]
    except ValueError:
        pass  # not a JPEG, or a damaged one: Pillow decides
    return with_pillow(content, part)


def pick_decoder(name: str) -> Decode:
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


def why(error: Exception) -> str:
    """The reason of a failed decoding in one line; Pillow names objects of this process, which says nothing."""
    text = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def unreadable(bad: Sequence[tuple[str, str]], what: str = "usable image") -> str:
    """The message for the (path, reason) of files that cannot be used: the first three, and how many more there are."""
    one, paths = len(bad) == 1, ", ".join(path for path, _ in bad[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    state = f"not a {what}" if one else f"no {what}s"
    repair = f"repair or remove {'it' if one else 'them'}, or set data.on_bad_image=skip"
    return f"{paths}{more}: {state} ({bad[0][1]}); {repair}"
