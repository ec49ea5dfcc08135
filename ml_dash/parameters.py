"""Parameters: merged by key, the newest value wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .core.events import PARAMETERS
from .core.json_values import flatten, unflatten
from .core.values import as_mapping, parameter_values
from .recording.lifecycle import checked_mapping

if TYPE_CHECKING:
    from typing_extensions import Self

    from .recording.lifecycle import Handle


class ParametersBuilder:
    """Sets and reads the parameters of one experiment."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def set(self, parameters: object = None, /, **more: Any) -> Self:
        """Merge parameters, and return the builder. Nested mappings become dotted keys; lists stay whole.

        `parameters`, and values in it, are mappings or objects that hold named values: `argparse.Namespace`,
        `SimpleNamespace`, a dataclass, attrs, pydantic or OmegaConf object. Keys of int, float, bool, None and Enum
        become text. Raises WriteProtected, InvalidValue or UnsupportedType; nothing is recorded then.
        """
        self._handle.session.changeable()
        if parameters is not None:
            given = as_mapping(parameters)
            if given is None:
                checked_mapping("parameters", parameters)
            more = {**dict(given or {}), **more}
        flat = flatten(parameter_values(more, self._handle.warn))
        if flat:
            self._handle.record(PARAMETERS, flat)
        return self

    def get(self, flatten: bool = True) -> dict[str, Any]:
        """Return all parameters, flat with dotted keys, or nested with `flatten=False`; `{}` if there are none."""
        with self._handle.session.looking() as view:
            flat = view.parameters()
        return flat if flatten else unflatten(flat)

    @staticmethod
    def flatten_dict(d: Mapping[str, Any], parent_key: str = "", sep: str = ".") -> dict[str, Any]:
        """Return nested mappings as one flat dict, keys joined with `sep`."""
        return flatten(d, parent_key, sep)

    @staticmethod
    def unflatten_dict(d: Mapping[str, Any], sep: str = ".") -> dict[str, Any]:
        """Return a flat mapping as nested dicts; a key that is also a prefix keeps its value under the key `""`."""
        return unflatten(d, sep)
