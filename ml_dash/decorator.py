"""`@ml_dash_experiment(...)`: open an experiment for each call of a function."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, Final, Protocol, TypeVar, overload

from .errors import UnsupportedType
from .experiment import Experiment

_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_KEYWORD: Final = "experiment"
_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class _Decorated(Protocol[_R_co]):
    """A decorated function, called with or without the experiment, which is filled in if it is missing."""

    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> _R_co: ...

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> _Decorated[_R_co]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., _R_co]: ...


class _Decorator(Protocol):
    def __call__(self, function: Callable[..., _R], /) -> _Decorated[_R]: ...


def ml_dash_experiment(
    name: str | Callable[..., str] | None = None, project: str | None = None, **keywords: Any
) -> _Decorator:
    """Open an experiment for each call of the decorated function.

    Takes the keywords of `Experiment`; `name` may be a function of the call's arguments. The function gets the keyword
    `experiment` if it takes it. If a caller passes `experiment=`, that is used and nothing is opened. The
    experiment stays open until a coroutine has returned or a generator has ended. Raises UnsupportedType without
    arguments, or on a class.
    """
    if name is None or project is None or inspect.isclass(name):
        raise UnsupportedType(
            "ml_dash_experiment needs a name and a project",
            hint='use @ml_dash_experiment(name="my-experiment", project="project")',
        )
    known = inspect.signature(Experiment).parameters
    unknown = sorted(keywords.keys() - known.keys())
    if unknown:
        raise UnsupportedType(
            f"ml_dash_experiment has no keyword {unknown[0]!r}",
            hint=f"it takes those of Experiment: {', '.join(known)}",
        )

    def decorate(function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(decorate(function.__func__))
        if inspect.isclass(function) or not callable(function):
            raise UnsupportedType(
                f"ml_dash_experiment was put on {function!r:.80}, and decorates functions and methods only",
                hint="put it on the method that trains",
            )
        return _wrapped(function, _Call(function, name, project, keywords))

    return decorate


class _Call:
    """The start of each call of a decorated function: an experiment, and arguments that include it."""

    def __init__(
        self, function: Callable[..., Any], name: str | Callable[..., str], project: str, keywords: dict[str, Any]
    ) -> None:
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters.values())
        self.shown = self._signature.replace(parameters=[p for p in parameters if p.name != _KEYWORD])
        self._takes_it = _takes_experiment(self._signature)
        positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self._place = positional.index(_KEYWORD) if _KEYWORD in positional else None
        self._name = name
        self._project = project
        self._keywords = keywords

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return (a context to run the call in, positional arguments, named arguments)."""
        if self._is_complete(args, kwargs):
            return contextlib.nullcontext(), args, kwargs
        named = {key: value for key, value in kwargs.items() if key != _KEYWORD}
        given = kwargs.get(_KEYWORD)
        if given is not None:
            return contextlib.nullcontext(), *self._with_experiment(args, named, given)
        experiment = Experiment(self._name_of(args, named), self._project, **self._keywords)
        return experiment, *self._with_experiment(args, named, experiment)

    def _is_complete(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if a call passes an experiment by position, with all other arguments that the function needs."""
        place = self._place
        return (
            place is not None
            and len(args) > place
            and isinstance(args[place], Experiment)
            and _binds(self._signature, args, kwargs) is not None
        )

    def _with_experiment(
        self, args: tuple[Any, ...], named: dict[str, Any], experiment: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the experiment: by position if others reach its place, else by name."""
        if not self._takes_it:
            return args, named
        if self._place is not None and len(args) >= self._place:
            return (*args[: self._place], experiment, *args[self._place :]), named
        return args, {**named, _KEYWORD: experiment}

    def _name_of(self, args: tuple[Any, ...], named: dict[str, Any]) -> str:
        """Return the experiment's name; a function gets the arguments it names, or else all arguments of the call."""
        if isinstance(self._name, str):
            return self._name
        bound = _binds(self.shown, args, named)
        if bound is not None:
            bound.apply_defaults()
            wanted = inspect.signature(self._name).parameters
            if wanted and wanted.keys() <= bound.arguments.keys():
                return self._name(**{key: bound.arguments[key] for key in wanted})
        return self._name(*args, **named)


def _binds(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return None


def _takes_experiment(signature: Signature) -> bool:
    parameter = signature.parameters.get(_KEYWORD)
    if parameter is not None:
        return parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return any(p.kind is Parameter.VAR_KEYWORD for p in signature.parameters.values())


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """True for a function of that kind, and for an object whose `__call__` is one."""
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004 - not whether it can be called


def _wrapped(function: Callable[..., Any], call: _Call) -> Any:
    wrapper: Any
    if _is(inspect.iscoroutinefunction, function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            context, args, kwargs = call.begin(args, kwargs)
            with context:
                return await function(*args, **kwargs)

    elif _is(inspect.isasyncgenfunction, function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            context, args, kwargs = call.begin(args, kwargs)
            with context:
                inner = function(*args, **kwargs)
                try:
                    # As `yield from` does for generators: values and exceptions sent in are passed on to `inner`.
                    value = await anext(inner)
                    while True:
                        try:
                            sent = yield value
                        except GeneratorExit:
                            raise
                        except BaseException as error:  # noqa: BLE001 - it is the function's to handle
                            value = await inner.athrow(error)
                        else:
                            value = await inner.asend(sent)
                except StopAsyncIteration:
                    return
                finally:
                    await inner.aclose()

    elif _is(inspect.isgeneratorfunction, function):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            context, args, kwargs = call.begin(args, kwargs)
            with context:
                return (yield from function(*args, **kwargs))

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            context, args, kwargs = call.begin(args, kwargs)
            with context:
                return function(*args, **kwargs)

    wrapper = functools.wraps(function)(wrapper)
    wrapper.__signature__ = call.shown
    return wrapper
