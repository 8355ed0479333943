"""Structures of arrays: lists, tuples and dicts, nested."""

from collections.abc import Iterator
from typing import Any

from schuss._arrays import Array, ArrayTree


def named_leaves(tree: ArrayTree, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a structure with their names: "layers/0/W"."""
    if tree is None:
        return
    if not isinstance(tree, dict | list | tuple):
        yield name, tree  # type: ignore[misc]
        return
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from named_leaves(child, f"{name}/{key}" if name else str(key))


def leaves_like(tree: Any, grads: Any) -> Iterator[Any]:
    """Yield what belongs to each array of a structure, such as its gradient, or None."""
    if isinstance(tree, dict | list | tuple):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves_like(child, None if grads is None else grads[key])
    elif tree is not None:
        yield grads


def unflatten(tree: ArrayTree, leaves: list[Array]) -> Any:
    """Return the structure with other leaves."""
    remaining = iter(leaves)

    def build(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: build(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return type(node)([build(child) for child in node])
        return None if node is None else next(remaining)

    return build(tree)
