"""Image files to pixels: simplejpeg for the ordinary JPEG, Pillow for everything else."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
# Pillow could open others, with losses or frames of a film, some of them by starting programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
ENDINGS = (".jpeg", ".jpg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112  # the EXIF tag: 1 as it is stored, 3 upside down, 6 and 8 on its side, the others mirrored
ON_ITS_SIDE = (5, 6, 7, 8)
EXIF_WITHIN = 1 << 16  # bytes: the first segment of a JPEG holds it
GRAY = ("1", "L", "LA")
EIGHT_BITS = (*GRAY, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# Unusable images tolerated per epoch: max(0.1 % of the split, min(5, 25 %)), at least 1.
MAX_BAD_SHARE, MAX_BAD_ALWAYS, MAX_BAD_OF_FEW = 0.001, 5, 0.25
DECODERS = ("auto", "simplejpeg", "pillow", "pil")


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an image too large to be meant."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"its header says {width}x{height} pixels, more than {MAX_PIXELS:,}")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 for one without; read from its header alone.

    1 for a TIFF as well: there the tag belongs to the format, and Pillow applies it whoever asks.
    """
    if image.format == "TIFF" or not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def orientation_in(content: Content) -> int:
    """The EXIF orientation of the content of a file; 1 for one that is no image, which whoever decodes it finds."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return orientation_of(image)
    except Exception:  # decoders raise nearly anything on damaged files
        return 1


def hint_on_turn(tag: int, on_its_side: bool) -> str:
    """For the message about an image of another size than what belongs to it: that its EXIF orientation may be why.

    Args:
        tag: the orientation.
        on_its_side: height and width would fit if they were exchanged.
    """
    if not on_its_side or tag not in ON_ITS_SIDE:
        return ""
    return f"; its EXIF orientation {tag} turns it on its side: data.exif=apply or data.exif=ignore decides"


def open_rgb(content: Content, turn: bool = False) -> Image.Image:
    """Decode with Pillow to an RGB image: gray is repeated, CMYK converted, alpha dropped.

    Args:
        content: the bytes of a file.
        turn: apply the EXIF orientation.

    Raises:
        ValueError, OSError, DecompressionBombError: for a file that is no such image, damaged or too large, has several
            frames or more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of, check_size refuses
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    with image:
        check_size(image.height, image.width)
        if image.mode not in EIGHT_BITS:
            raise ValueError(f"pixels of mode {image.mode}, not 8 bits a channel")
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("a TIFF of several images")
        if turn and orientation_of(image) != 1:
            return ImageOps.exif_transpose(image).convert("RGB")
        if image.mode == "RGB":  # convert would copy it
            image.load()
            return image
        return image.convert("RGB")


def whole(height: int, width: int) -> tuple[int, int, int, int]:
    """The part of an image that is all of it."""
    return 0, 0, height, width


def with_pillow(content: Content, part: Part = whole, turn: bool = False) -> Pixels:
    """(H, W, 3) pixels of a part of any known image file; turn: as its EXIF orientation says.

    The part is cut out before it becomes an array: that copy, of every pixel, is slow.
    """
    image = open_rgb(content, turn)
    top, left, height, width = part(image.height, image.width)
    return np.array(image.crop((left, top, left + width, top + height)))


def with_simplejpeg(content: Content, part: Part = whole, turn: bool = False) -> Pixels:
    """(H, W, 3) pixels; the same as `with_pillow`, sooner where the file is a three-component JPEG without a flaw."""
    import simplejpeg

    try:
        if turn and b"Exif\0\0" in bytes(content[:EXIF_WITHIN]) and orientation_in(content) != 1:
            return with_pillow(content, part, turn)
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors == "YCbCr" and height * width <= MAX_PIXELS:
            pixels = simplejpeg.decode_jpeg(content, "RGB")
            top, left, height, width = part(height, width)
            return pixels[top : top + height, left : left + width]
    except ValueError:
        pass  # not a JPEG, or a damaged one: Pillow decides
    return with_pillow(content, part, turn)


def pick_decoder(name: str, exif: str = "ignore") -> Decode:
    """The decoder of a name: `auto` is simplejpeg where it is installed, else Pillow.

    exif: `apply` turns images as their EXIF orientation says, `ignore` takes them as they are stored.

    Raises:
        ValueError: for an unknown name, or `simplejpeg` where it is not installed.
    """
    if name not in DECODERS:
        raise ValueError(f"unknown decoder '{name}', choose one of {', '.join(DECODERS)}")
    installed = find_spec("simplejpeg") is not None
    if name == "simplejpeg" and not installed:
        raise ValueError("decoder simplejpeg is not installed: pip install simplejpeg, or use decoder=auto")
    decode = with_simplejpeg if name in ("auto", "simplejpeg") and installed else with_pillow
    return partial(decode, turn=True) if exif == "apply" else decode


def why(error: Exception) -> str:
    """The reason of a failed decoding in one line; Pillow names objects of this process, which says nothing."""
    text = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def unreadable(bad: Sequence[tuple[str, str]], what: str = "usable image", of: int | None = None) -> str:
    """The message for the (path, reason) of files that cannot be used: the first three, and how many more there are.

    of: so many files were read. Where a quarter of them is bad, leaving them out is no way to go on.
    """
    one, paths = len(bad) == 1, ", ".join(path for path, _ in bad[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    state = f"not a {what}" if one else f"no {what}s"
    repair = f"repair or remove {'it' if one else 'them'}, or set data.on_bad_image=skip"
    if of is not None and 4 * len(bad) >= of and not one:
        repair = f"{len(bad):,} of {of:,} files: look at how they were written"
    return f"{paths}{more}: {state} ({bad[0][1]}); {repair}"


def tolerated(count: int) -> int:
    """The number of unusable images among so many that `on_bad_image=skip` leaves out in an epoch."""
    few = max(1, min(MAX_BAD_ALWAYS, int(MAX_BAD_OF_FEW * count)))
    return max(few, int(MAX_BAD_SHARE * count))


def require_few(bad: Mapping[str, str], count: int) -> None:
    """Raise ValueError if more than `tolerated` of so many images cannot be used; bad: path -> reason."""
    if len(bad) > tolerated(count):
        path = min(bad)
        raise ValueError(
            f"{len(bad)} of {count} images cannot be used, {tolerated(count)} may be left out; one is {path} "
            f"({bad[path]})"
        )
