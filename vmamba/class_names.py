"""What the classes of a model are called."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


def numbered(named: Sequence[str] | None, count: int) -> list[str]:
    """Return the class names, or numbers where there are fewer names than classes."""
    return list(named) if named and len(named) >= count else [str(c) for c in range(count)]


@cache
def _info():
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k")


def imagenet_names() -> list[str]:
    """Return the 1000 names of ImageNet-1K's classes, in the order of the outputs."""
    return [_first(_info().index_to_description(i)) for i in range(_info().num_classes())]


def described(names: Sequence[str]) -> list[str]:
    """Return `names` with WordNet ids, as ImageNet's folders are called ("n01440764"), put into words; others as is."""
    if not all(len(name) == 9 and name[0] == "n" and name[1:].isdecimal() for name in names):
        return list(names)
    known = set(_info().label_names())
    return [_first(_info().label_name_to_description(name)) if name in known else name for name in names]


def _first(description: str) -> str:
    return description.split(", ")[0]
