"""Which configuration keys the sources read, by following names: `train = config.TRAIN`, then `train.EPOCHS`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

Chain = tuple[str, ...]


def keys_read(files: Iterable[Path]) -> set[Chain]:
    """Return the chain of capital names behind every attribute or subscript, ("TRAIN", "EPOCHS") say."""
    return {chain for file in files for chain in _chains(ast.parse(file.read_text()))}


def is_read(key: str, chains: set[Chain], keys: Iterable[str]) -> bool:
    """True when a chain ends in `key`, or in a part of it that no other of the `keys` ends in."""
    parts = tuple(key.split("."))
    for length in range(1, len(parts) + 1):
        tail = parts[-length:]
        alone = sum(tuple(other.split("."))[-length:] == tail for other in keys) == 1
        if tail in chains and (alone or length == len(parts)):
            return True
    return False


def _chains(tree: ast.Module) -> Iterator[Chain]:
    scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda))]
    for scope in scopes:
        names: dict[str, Chain] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if isinstance(target, ast.Name) and _chain(value, names):
                        names[target.id] = _chain(value, names)
        stored = {id(t) for n in ast.walk(scope) if isinstance(n, ast.Assign) for t in n.targets}
        for node in ast.walk(scope):
            if id(node) not in stored and (chain := _chain(node, names)):
                yield chain


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts)
        else:
            yield target, node.value


def _chain(node: ast.AST, names: dict[str, Chain]) -> Chain:
    """The capital names of `node`, outermost first; empty where it is no chain."""
    if isinstance(node, ast.Name):
        return names.get(node.id, ())
    if isinstance(node, ast.Attribute) and node.attr.isupper():
        return (*_chain(node.value, names), node.attr)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and _capital(node.slice.value):
        return (*_chain(node.value, names), str(node.slice.value))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        if node.args and isinstance(node.args[0], ast.Constant) and _capital(node.args[0].value):
            return (*_chain(node.func.value, names), str(node.args[0].value))
    return ()


def _capital(value: object) -> bool:
    return isinstance(value, str) and value.isupper()
