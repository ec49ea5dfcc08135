"""Parameters: merged by key, the newest value wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedType
from .events import PARAMETERS
from .values import flatten, lenient_values, unflatten

if TYPE_CHECKING:
    from typing_extensions import Self

    from .experiment import Experiment


class ParametersBuilder:
    """Sets and reads the parameters of one experiment."""

    def __init__(self, handle: Experiment) -> None:
        self._handle = handle

    def set(self, parameters: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """Merge parameters; nested mappings become dotted keys, lists stay whole. Returns the builder.

        Raises WriteProtected, InvalidValue or UnsupportedType; nothing is recorded then.
        """
        run = self._handle._changeable_run()
        if parameters is not None and not isinstance(parameters, Mapping):
            raise UnsupportedType(
                f"parameters are {type(parameters).__name__}, expected a mapping", hint="use set(learning_rate=0.001)"
            )
        plain = lenient_values({**(parameters or {}), **more}, self._handle._warn)
        flat = flatten(plain)
        if flat:
            run.writer.append(PARAMETERS, flat)
        return self

    def get(self, flatten: bool = True) -> dict[str, Any]:
        """All parameters, flat with dotted keys, or nested with `flatten=False`; `{}` when there are none."""
        with self._handle._looking() as view:
            flat = view.parameters()
        return flat if flatten else unflatten(flat)

    @staticmethod
    def flatten_dict(d: Mapping[str, Any], parent_key: str = "", sep: str = ".") -> dict[str, Any]:
        """Nested mappings as one flat mapping, keys joined with `sep`."""
        return flatten(d, parent_key, sep)

    @staticmethod
    def unflatten_dict(d: Mapping[str, Any], sep: str = ".") -> dict[str, Any]:
        """The reverse; a key that is both a value and a prefix keeps its value under the key `""`."""
        return unflatten(d, sep)
