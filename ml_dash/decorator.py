"""`@ml_dash_experiment(...)`: open an experiment for each call of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from .errors import UnsupportedType
from .experiment import Experiment

_R = TypeVar("_R")
_KEYWORD = "experiment"


class _Decorated(Protocol[_R]):
    """A decorated function: called with or without the experiment, which is filled in."""

    __name__: str
    __wrapped__: Callable[..., _R]

    def __call__(self, *args: Any, **kwargs: Any) -> _R: ...

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> _Decorated[_R]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., _R]: ...


class _Decorator(Protocol):
    def __call__(self, function: Callable[..., _R], /) -> _Decorated[_R]: ...


def ml_dash_experiment(
    name: str | Callable[..., str] | None = None, project: str | None = None, **keywords: Any
) -> _Decorator:
    """Run a function inside an open experiment, a new opening for each call.

    Takes the keywords of `Experiment`; `name` may be a function of the call's arguments. The function gets the keyword
    `experiment` if it takes it; a caller's own `experiment=` is used as it is, and nothing is opened. Coroutine
    functions are awaited, and generators run, inside. Raises UnsupportedType without arguments, or on a class.
    """
    if name is None or project is None or (callable(name) and inspect.isclass(name)):
        raise UnsupportedType(
            "ml_dash_experiment needs arguments", hint='use @ml_dash_experiment(name="my-experiment", project="project")'
        )

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.isclass(function) or not callable(function):
            raise UnsupportedType("ml_dash_experiment decorates functions and methods, not classes")
        return _wrap(function, name, project, keywords)

    return decorate


def _wrap(function: Callable[..., Any], name: Any, project: str, keywords: dict[str, Any]) -> Any:
    signature = inspect.signature(function)
    takes = _takes_experiment(signature)
    shown = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != _KEYWORD])

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Experiment | None, tuple[Any, ...], dict[str, Any]]:
        """(the experiment to open, or None where the caller brought one; arguments)."""
        given = kwargs.get(_KEYWORD)
        if given is not None:
            if takes:
                return None, *_placed(signature, args, kwargs, given)
            return None, args, {key: value for key, value in kwargs.items() if key != _KEYWORD}
        kwargs = {key: value for key, value in kwargs.items() if key != _KEYWORD}
        if not callable(name):
            opened = Experiment(name, project, **keywords)
        else:
            opened = Experiment(_called_with_what_it_takes(name, shown, args, kwargs), project, **keywords)
        return (opened, *_placed(signature, args, kwargs, opened)) if takes else (opened, args, kwargs)

    wrapper: Any
    if inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            experiment, args, kwargs = prepare(args, kwargs)
            if experiment is None:
                return await function(*args, **kwargs)
            with experiment:
                return await function(*args, **kwargs)

    elif inspect.isasyncgenfunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            experiment, args, kwargs = prepare(args, kwargs)
            with experiment or _Nothing():
                inner = function(*args, **kwargs)
                try:
                    sent = None
                    while True:
                        try:
                            sent = yield await inner.asend(sent)
                        except StopAsyncIteration:
                            return
                finally:
                    await inner.aclose()

    elif inspect.isgeneratorfunction(function):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            experiment, args, kwargs = prepare(args, kwargs)
            with experiment or _Nothing():
                return (yield from function(*args, **kwargs))

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            experiment, args, kwargs = prepare(args, kwargs)
            with experiment or _Nothing():
                return function(*args, **kwargs)

    wrapper = functools.wraps(function)(wrapper)
    wrapper.__signature__ = shown
    return wrapper


class _Nothing:
    """Stands where the caller's own experiment is used: nothing is opened or closed."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _takes_experiment(signature: inspect.Signature) -> bool:
    parameter = signature.parameters.get(_KEYWORD)
    if parameter is not None:
        return parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


def _placed(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], experiment: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the experiment among them: by position where positional ones would run into it."""
    rest = {key: value for key, value in kwargs.items() if key != _KEYWORD}
    positional = [
        p.name
        for p in signature.parameters.values()
        if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    if _KEYWORD in positional:
        place = positional.index(_KEYWORD)
        if len(args) >= place:
            if len(args) > place and isinstance(args[place], Experiment):
                return args, rest
            return (*args[:place], experiment, *args[place:]), rest
    return args, {**rest, _KEYWORD: experiment}


def _called_with_what_it_takes(name: Callable[..., str], shown: inspect.Signature, args: Any, kwargs: Any) -> str:
    """`name=` as a function: it gets the call's arguments by name where it names them, else all of them."""
    wanted = inspect.signature(name).parameters
    try:
        bound = shown.bind(*args, **kwargs)
    except TypeError:
        return name(*args, **kwargs)
    bound.apply_defaults()
    if wanted and set(wanted) <= set(bound.arguments):
        return name(**{key: bound.arguments[key] for key in wanted})
    return name(*args, **kwargs)
