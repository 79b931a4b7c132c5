"""Inert stand-ins for the classes that published checkpoints pickle beside their tensors.

torch's restricted unpickler builds tensors, plain containers and what it is told to. It is told of the classes here,
each under the name of the class it stands in for. They keep what they are given and run nothing; `plain` then turns
them into dicts, lists, strings and numbers. So a file with a yacs CfgNode is read without yacs, and equally where yacs
is installed: the class of that name is never imported.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any

import numpy as np


class StandIn:
    """What a pickle gave to the class that this one stands in for: arguments, then perhaps a state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        made = super().__new__(cls)
        made.__dict__.update(arguments=arguments, state=None)
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Nothing: `__new__` has kept the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __repr__(self) -> str:
        return f"the result of a {type(self).__name__.lower()}"

    def plain(self) -> Any:
        """Return the plain value that stands for it; it may hold further stand-ins."""
        return None


class Attributes(StandIn):
    """An object that is a bag of attributes, such as argparse.Namespace."""

    def plain(self) -> Any:
        return dict(self.state) if isinstance(self.state, dict) else {}


class Tree(StandIn):
    """mmengine's Config: a tuple whose first item is the tree."""

    def plain(self) -> Any:
        return self.state[0] if isinstance(self.state, tuple) and self.state else {}


class Node(StandIn):
    """A node of omegaconf: its content, or its value."""

    def plain(self) -> Any:
        state = self.state if isinstance(self.state, dict) else {}
        return state.get("_content", state.get("_val"))


class Text(StandIn):
    """A path: its parts, joined."""

    def plain(self) -> Any:
        return str(PurePosixPath(*(part for part in self.arguments if isinstance(part, str))))


class Mapping(StandIn):
    """A kind of dict. The unpickler fills only the plain kinds, so this makes one of these and marks it."""

    MARK = "_stands_in"

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()
        for argument in arguments:
            if isinstance(argument, dict):
                made.update(argument)
        made.__dict__[cls.MARK] = True
        return made


class Dtype(StandIn):
    """numpy.dtype: the code of a plain numeric type."""

    def plain(self) -> Any:
        code = self.arguments[0] if self.arguments else None
        code = code.decode("ascii") if isinstance(code, bytes) else code
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if not isinstance(code, str) or code.lstrip("<>=|")[:1] not in ("b", "i", "u", "f", "c"):
            return None
        return np.dtype(code).newbyteorder(">") if order == ">" else np.dtype(code)


class Scalar(StandIn):
    """A number of numpy: its type and its bytes."""

    def plain(self) -> Any:
        dtype, data = (*self.arguments, None, None)[:2]
        kind = dtype.plain() if isinstance(dtype, Dtype) else None
        if kind is None or not isinstance(data, bytes) or len(data) != kind.itemsize:
            return None
        return np.frombuffer(data, kind)[0].item()


class Array(StandIn):
    """An array of numpy: version, shape, type, order, bytes; a list where its items are objects."""

    def plain(self) -> Any:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, by_column, data = self.state
        kind = dtype.plain() if isinstance(dtype, Dtype) else None
        data = b"" if isinstance(data, Nothing) else data
        if kind is None or not isinstance(data, bytes):
            return data if isinstance(data, list) else None
        return np.frombuffer(data, kind).copy().reshape(shape, order="F" if by_column else "C")


class Nothing(StandIn):
    """bytes() without bytes, as an empty array has them."""

    def plain(self) -> Any:
        return b""


class Word(StandIn):
    """A class or type that a pickle only mentions."""


class Getattr(StandIn):
    """The getattr by which mmengine's HistoryBuffer names its methods; it fetches nothing, so nothing can be called."""


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
STAND_INS: dict[str, type[StandIn]] = {
    **dict.fromkeys(
        (
            "yacs.config.CfgNode",
            "fvcore.common.config.CfgNode",
            "detectron2.config.config.CfgNode",
            "addict.addict.Dict",
            "easydict.EasyDict",
            "mmengine.config.config.ConfigDict",
            "mmcv.utils.config.ConfigDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "collections.defaultdict",
        ),
        Mapping,
    ),
    **dict.fromkeys(
        (
            "argparse.Namespace",
            "types.SimpleNamespace",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
        ),
        Attributes,
    ),
    **dict.fromkeys(("mmengine.config.config.Config", "mmcv.utils.config.Config"), Tree),
    **dict.fromkeys(
        (
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "omegaconf.nodes.StringNode",
            "omegaconf.nodes.IntegerNode",
            "omegaconf.nodes.FloatNode",
            "omegaconf.nodes.BooleanNode",
        ),
        Node,
    ),
    **dict.fromkeys(
        (
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib.PurePosixPath",
            "pathlib.PureWindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
        ),
        Text,
    ),
    "builtins.getattr": Getattr,
    "builtins.bytes": Nothing,
    "numpy.dtype": Dtype,
    **{f"{module}.scalar": Scalar for module in _NUMPY},
    **{f"{module}._reconstruct": Array for module in _NUMPY},
    **dict.fromkeys(
        (
            "numpy.ndarray",
            "typing.Any",
            "builtins.int",
            "builtins.float",
            "builtins.str",
            "builtins.bool",
            "builtins.list",
            "builtins.dict",
            "builtins.tuple",
        ),
        Word,
    ),
}


def plain(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Return `value` with every stand-in inside it replaced by plain data; shared parts stay shared.

    Dicts and lists are changed in place, so that an OrderedDict of tensors stays itself. Where a stand-in contains
    itself, it is None.
    """
    seen = {} if seen is None else seen
    key = id(value)
    if key in seen:
        return seen[key][1]
    if isinstance(value, StandIn):
        seen[key] = (value, None)
        result = plain(value.plain(), seen)
    elif isinstance(value, dict):
        result = dict(value) if Mapping.MARK in getattr(value, "__dict__", {}) else value
        seen[key] = (value, result)
        for name in list(result):
            result[name] = plain(result[name], seen)
    elif isinstance(value, list):
        result = value
        seen[key] = (value, result)
        value[:] = [plain(item, seen) for item in value]
    elif type(value) is tuple:
        result = tuple(plain(item, seen) for item in value)
    else:
        return value
    seen[key] = (value, result)
    return result
