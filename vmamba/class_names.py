"""What the classes of a model are called."""

from __future__ import annotations

from collections import Counter
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
    """Return the 1000 names of ImageNet-1K's classes, in the order of the outputs, each once."""
    return list(_by_id().values())


@cache
def _by_id() -> dict[str, str]:
    """{WordNet id: name}: the first word of the description, with the id where two classes share it."""
    ids = _info().label_names()
    names = [_info().label_name_to_description(wordnet_id).split(", ")[0] for wordnet_id in ids]
    shared = {name for name, times in Counter(names).items() if times > 1}
    pairs = zip(ids, names, strict=True)
    return {wordnet_id: f"{name} ({wordnet_id})" if name in shared else name for wordnet_id, name in pairs}


def described(names: Sequence[str]) -> list[str]:
    """Return `names` with WordNet ids, as ImageNet's folders are called ("n01440764"), put into words; others as is."""
    if not all(len(name) == 9 and name[0] == "n" and name[1:].isdecimal() for name in names):
        return list(names)
    return [_by_id().get(name, name) for name in names]
