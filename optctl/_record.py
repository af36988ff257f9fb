"""Frozen records that JAX sees as pytrees.

Every data type of the package is such a record: arrays are leaves (data that may change without
recompilation), the fields named in `static` are part of the tree's structure (functions, names, sizes).
Unflattening bypasses the constructor, so validation in `__post_init__` runs only for records a user makes.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def record(*, static: tuple[str, ...] = (), remarks: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass and a pytree, such as an own kind of dynamics or a cost with data.

    Args:
        static: names of the fields that are structure, not data: functions, names, sizes. They must be hashable.
        remarks: names of fields with a default that are neither: words about one record, which no transformation
            carries on. Where JAX makes a new record of its leaves, they are the default again.

    Example:
        >>> import optctl as oc
        >>> @oc.record(static=("name",))
        ... class Spring:
        ...     stiffness: float
        ...     name: str = "spring"
        >>> Spring(2.0)
        Spring(stiffness=2.0, name='spring')
    """

    def wrap(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        names = [field.name for field in dataclasses.fields(made)]  # type: ignore[arg-type]
        leaves = [name for name in names if name not in (*static, *remarks)]
        unsaid = {name: made.__dataclass_fields__[name].default for name in remarks}  # type: ignore[attr-defined]

        keys = [jax.tree_util.GetAttrKey(name) for name in leaves]
        get_leaves, get_static = _getter(leaves), _getter(static)

        def flatten_with_keys(obj: Any) -> tuple[list, tuple]:
            return list(zip(keys, get_leaves(obj), strict=True)), get_static(obj)

        def flatten(obj: Any) -> tuple[tuple, tuple]:
            return get_leaves(obj), get_static(obj)

        def unflatten(structure: tuple, children: Any) -> Any:
            obj = object.__new__(made)
            vars(obj).update(zip(leaves, children, strict=True))
            vars(obj).update(zip(static, structure, strict=True))
            vars(obj).update(unsaid)
            return obj

        if "__repr__" not in vars(cls):
            made.__repr__ = _brief  # type: ignore[assignment,method-assign]
        jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
        return made

    return wrap


def changed(obj: T, **changes: Any) -> T:
    """Return a record with other values in some fields, made without its constructor, as JAX makes one of leaves.

    That is several times faster than `dataclasses.replace`, and for records that check nothing the same.
    """
    made = object.__new__(type(obj))
    of = vars(obj)
    vars(made).update({name: of[name] for name in obj.__dataclass_fields__} | changes)  # type: ignore[attr-defined]
    return made


def _getter(names: Sequence[str]) -> Callable[[Any], tuple]:
    """Return a fast function from an object to the tuple of its fields of these names."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    if not names:
        return lambda obj: ()
    get = operator.attrgetter(names[0])
    return lambda obj: (get(obj),)


def _brief(obj: Any) -> str:
    """Show a record on one line: arrays by type and shape, not by their numbers."""
    parts = [f"{field.name}={brief(getattr(obj, field.name))}" for field in dataclasses.fields(obj)]
    return f"{type(obj).__name__}({', '.join(parts)})"


def brief(value: Any) -> str:
    """Show a value on one line, as `_brief` does."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}" if value.shape else f"{value}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(brief(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {brief(v)}" for k, v in value.items()) + "}"
    return getattr(value, "__name__", None) or repr(value)


class Identity:
    """A value compared by identity, so that an object that merely equals another never takes its compiled code."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return getattr(self.value, "__name__", None) or repr(self.value)


@record(static=("identity",))
class Static:
    """A value without leaves, which JAX compares by identity and never traces."""

    identity: Identity


def remember(table: dict, key: Any, value: Any, most: int) -> Any:
    """Put a value into a table, which is emptied where it has so many, and return the value."""
    if len(table) >= most:
        table.clear()
    table[key] = value
    return value
