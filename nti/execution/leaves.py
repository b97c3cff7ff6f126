"""The tensors in a step's arguments and results, which are nests of tuples and dataclasses."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

__all__ = ["cloned", "shape_key", "tensors"]


def tensors(value: Any) -> list[Tensor | None]:
    """Return the leaves in order; TypeError for anything that is no tensor, tuple or dataclass."""
    if value is None or isinstance(value, Tensor):
        return [value]
    return [leaf for part in _parts(value) for leaf in tensors(part)]


def cloned(value: Any) -> Any:
    """Return the same nest on memory of its own."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.clone()
    parts = [cloned(part) for part in _parts(value)]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(parts)
    return type(value)(*parts)


def shape_key(leaves: list[Tensor | None]) -> tuple[object, ...]:
    """Return what a graph of these arguments is made for: shapes, strides, dtypes, devices."""
    return tuple(None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in leaves)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    raise TypeError(f"got {type(value).__name__}, expected tensors, tuples and dataclasses of them")
