"""From the bytes of an image file to a PIL image; one kind of error for whatever is wrong with them."""

from __future__ import annotations

import warnings
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from vmamba.preprocess import turned_upright

# Resized to 256 pixels on its short side, a longer strip than this would fill the memory.
LONGEST_STRIP = 256


class UnreadableImage(ValueError):
    """An image that the run does without; the message says why."""


def decode(file: BinaryIO) -> Image.Image:
    """Return the image decoded and upright; of an animation its first frame.

    Raises `UnreadableImage` for what is no image, damaged, above Pillow's limit of pixels (``Image.MAX_IMAGE_PIXELS``,
    a guard against decompression bombs) or more than 256 times as long as wide.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
            short, long = sorted(image.size)
            if long > LONGEST_STRIP * short:
                size = f"{image.width} x {image.height} pixels"
                raise UnreadableImage(f"{size}, a strip of more than {LONGEST_STRIP} to 1")
            image.load()
            return turned_upright(image)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels; store it smaller") from None
    except UnidentifiedImageError:
        raise UnreadableImage("it is no image" if file.seek(0, 2) else "it is empty") from None
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        raise UnreadableImage(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return why an image could not be read, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
