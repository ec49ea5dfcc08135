"""The decorator: every kind of function, every way to call it."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ml_dash
from ml_dash import Experiment, UnsupportedType, ml_dash_experiment

if TYPE_CHECKING:
    from tests.api.conftest import Make

train = ml_dash_experiment(name="first", project="cv", local_path="runs")


@pytest.fixture
def seen(make: Make) -> Any:
    """What was recorded: status, and the messages of all calls."""

    def look(name: str = "first") -> tuple[str, list[str]]:
        with make(name, read_only=True) as reader:
            return reader.status, [entry["message"] for entry in reader.log().read()["logs"]]

    return look


# -- functions --------------------------------------------------------------------------------------------------------


def test_each_call_opens_runs_and_closes(seen: Any) -> None:
    experiments = []

    @train
    def work(experiment: Experiment) -> str:
        assert experiment.is_open
        experiments.append(experiment)
        experiment.log("called")
        return "result"

    assert [work(), work()] == ["result", "result"]
    assert experiments[0] is not experiments[1]
    assert not experiments[0].is_open
    assert seen() == ("completed", ["called", "called"])


def test_an_exception_is_recorded_and_goes_on(seen: Any, make: Make) -> None:
    @train
    def work(experiment: Experiment) -> None:
        experiment.log("called")
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        work()
    assert seen() == ("failed", ["called"])
    assert make().data["error"]["message"] == "wrong"


def test_a_function_that_does_not_take_it_runs_inside_too(make: Make) -> None:
    @train
    def work(x: int) -> tuple[int, str]:
        with make() as experiment:
            return x, experiment.status

    assert work(1) == (1, "running")


def _first(experiment: Any, a: Any, b: Any = 2) -> Any:
    return experiment, a, b


def _middle(a: Any, experiment: Any, b: Any = 2) -> Any:
    return experiment, a, b


def _last(a: Any, b: Any = 2, experiment: Any = None) -> Any:
    return experiment, a, b


def _keyword_only(a: Any, b: Any = 2, *, experiment: Any) -> Any:
    return experiment, a, b


def _positional_only(experiment: Any, a: Any, /, b: Any = 2) -> Any:
    return experiment, a, b


def _in_keywords(a: Any, b: Any = 2, **keywords: Any) -> Any:
    return keywords["experiment"], a, b


@pytest.mark.parametrize("function", [_first, _middle, _last, _keyword_only, _positional_only, _in_keywords])
def test_it_is_filled_in_wherever_it_stands(make: Make, function: Any) -> None:
    work = train(function)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((1,), {}), ((1, 3), {}), ((1,), {"b": 3})]
    if function is not _positional_only:
        calls += [((), {"a": 1}), ((), {"a": 1, "b": 3})]
    for args, kwargs in calls:
        experiment, a, b = work(*args, **kwargs)
        assert (type(experiment), experiment.name, a) == (Experiment, "first", 1)
        assert b == (3 if 3 in args or "b" in kwargs else 2)
    with make("mine") as mine:
        assert work(1, experiment=mine)[0] is mine
        assert mine.is_open
    assert list(inspect.signature(work).parameters) == [
        name for name in inspect.signature(function).parameters if name != "experiment"
    ]


@pytest.mark.parametrize("function", [_first, _middle, _last, _positional_only])
def test_one_that_the_caller_gives_by_position_is_used_too(make: Make, runs: Path, function: Any) -> None:
    names = [name for name in inspect.signature(function).parameters if name != "b" or function is _last]
    with make("mine") as mine:
        experiment, *_ = train(function)(*[mine if name == "experiment" else 1 for name in names])
        assert experiment is mine
    assert not (runs / "cv" / "first").exists()


def test_nothing_is_opened_when_the_caller_gives_one(make: Make, runs: Path) -> None:
    @train
    def work(experiment: Experiment) -> Experiment:
        return experiment

    @train
    def does_not_take_it() -> str:
        return "ran"

    with make("mine") as mine:
        assert work(experiment=mine) is mine
        assert does_not_take_it(experiment=mine) == "ran"
        assert mine.is_open
    closed = make("closed")
    assert work(experiment=closed) is closed
    assert not closed.is_open
    assert not (runs / "cv" / "first").exists()


def test_another_experiment_among_the_arguments_is_an_argument(make: Make) -> None:
    @train
    def compare(experiment: Experiment, other: Experiment) -> tuple[str, str]:
        return experiment.name, other.name

    with make("other") as other:
        assert compare(other) == ("first", "other")
        assert compare(other=other) == ("first", "other")


def test_wrong_arguments_are_a_type_error_as_usual(seen: Any) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        train(_first)()
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        train(_first)(1, c=1)


def test_a_call_within_a_call_shares_the_run(seen: Any) -> None:
    @train
    def inner(experiment: Experiment) -> None:
        experiment.log("inner")

    @train
    def outer(experiment: Experiment) -> None:
        inner()
        experiment.log("outer")

    outer()
    assert seen() == ("completed", ["inner", "outer"])


# -- coroutines and generators ----------------------------------------------------------------------------------------


def test_a_coroutine_function_is_awaited_inside(seen: Any) -> None:
    @train
    async def work(x: int, experiment: Experiment) -> int:
        await asyncio.sleep(0)
        experiment.log("after the first await")
        return x

    assert inspect.iscoroutinefunction(work)
    assert asyncio.run(work(3)) == 3
    assert seen() == ("completed", ["after the first await"])


def test_a_coroutine_that_is_cancelled_has_failed(seen: Any) -> None:
    @train
    async def work(experiment: Experiment) -> None:
        experiment.log("waiting")
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert seen() == ("failed", ["waiting"])


def test_a_generator_runs_inside_from_the_first_value_to_the_last(seen: Any, make: Make) -> None:
    @train
    def work(experiment: Experiment, count: int) -> Iterator[Any]:
        for number in range(count):
            answer = yield number
            experiment.log(str(answer))
        return "returned"

    assert inspect.isgeneratorfunction(work)
    generator = work(2)
    assert make().status == "not open"
    assert next(generator) == 0
    assert make().status == "running"
    assert generator.send("first") == 1
    with pytest.raises(StopIteration, match="returned"):
        generator.send("second")
    assert seen() == ("completed", ["first", "second"])


def test_a_generator_that_is_not_run_to_its_end_is_completed_and_one_that_raises_has_failed(seen: Any) -> None:
    @train
    def work(experiment: Experiment) -> Iterator[int]:
        try:
            yield 1
            yield 2
        except KeyError:
            experiment.log("caught")
            yield 3

    generator = work()
    next(generator)
    generator.close()
    assert seen() == ("completed", [])
    generator = work()
    next(generator)
    assert generator.throw(KeyError) == 3
    assert list(generator) == []
    assert seen() == ("completed", ["caught"])
    generator = work()
    next(generator)
    with pytest.raises(ValueError, match="wrong"):
        generator.throw(ValueError("wrong"))
    assert seen()[0] == "failed"


@train
async def ticks(experiment: Experiment, count: int) -> AsyncIterator[Any]:
    try:
        for number in range(count):
            await asyncio.sleep(0)
            answer = yield number
            experiment.log(str(answer))
    except KeyError:
        experiment.log("caught")
        yield "handled"
    finally:
        await asyncio.sleep(0)
        experiment.log("cleaned up")


def test_an_async_generator_runs_inside(seen: Any) -> None:
    async def main() -> list[Any]:
        return [number async for number in ticks(3)]

    assert inspect.isasyncgenfunction(ticks)
    assert asyncio.run(main()) == [0, 1, 2]
    assert seen() == ("completed", ["None", "None", "None", "cleaned up"])


def test_an_async_generator_is_sent_values_and_exceptions(seen: Any) -> None:
    async def main() -> None:
        generator: Any = ticks(5)
        assert await anext(generator) == 0
        assert await generator.asend("sent") == 1
        assert await generator.athrow(KeyError("thrown")) == "handled"
        with pytest.raises(StopAsyncIteration):
            await anext(generator)

    asyncio.run(main())
    assert seen() == ("completed", ["sent", "caught", "cleaned up"])


@pytest.mark.parametrize(("error", "status"), [(None, "completed"), (ValueError("wrong"), "failed")])
def test_an_async_generator_that_is_left_early_is_cleaned_up_inside(seen: Any, error: Any, status: str) -> None:
    async def main() -> None:
        generator: Any = ticks(5)
        await anext(generator)
        if error is None:
            await generator.aclose()
        else:
            await generator.athrow(error)

    if error is None:
        asyncio.run(main())
    else:
        with pytest.raises(ValueError, match="wrong"):
            asyncio.run(main())
    assert seen() == (status, ["cleaned up"])


def test_concurrent_coroutines_share_the_run_and_fail_together(seen: Any) -> None:
    @train
    async def work(experiment: Experiment, number: int) -> None:
        for _ in range(3):
            experiment.log(str(number))
            await asyncio.sleep(0)
        if number == 1:
            raise ValueError("wrong")

    async def main() -> list[Any]:
        return list(await asyncio.gather(*[work(number) for number in range(3)], return_exceptions=True))

    assert [type(result).__name__ for result in asyncio.run(main())] == ["NoneType", "ValueError", "NoneType"]
    status, messages = seen()
    assert (status, sorted(messages)) == ("failed", sorted("012" * 3))


# -- methods and other callables --------------------------------------------------------------------------------------


class Trainer:
    rate = 0.1

    @train
    def fit(self, experiment: Experiment, epochs: int) -> tuple[float, int]:
        experiment.log("fit")
        return self.rate, epochs

    @train
    async def fit_later(self, epochs: int, experiment: Experiment) -> int:
        experiment.log("later")
        return epochs

    @staticmethod
    @train
    def inside(experiment: Experiment, x: int) -> int:
        return x

    @train
    @staticmethod
    def outside(experiment: Experiment, x: int) -> int:
        return x

    @classmethod
    @train
    def made(cls, experiment: Experiment) -> float:
        return cls.rate

    @train
    @classmethod
    def made_outside(cls, experiment: Experiment) -> float:
        return cls.rate

    def __call__(self, x: int, experiment: Experiment) -> int:
        experiment.log("called")
        return x


def test_methods_of_every_kind_work(seen: Any) -> None:
    trainer = Trainer()
    assert trainer.fit(3) == Trainer.fit(trainer, 3) == trainer.fit(epochs=3) == (0.1, 3)
    assert asyncio.run(trainer.fit_later(2)) == 2
    assert Trainer.inside(1) == trainer.inside(1) == Trainer.outside(1) == trainer.outside(1) == 1
    assert Trainer.made() == trainer.made() == Trainer.made_outside() == trainer.made_outside() == 0.1
    assert list(inspect.signature(trainer.fit).parameters) == ["epochs"]
    assert seen() == ("completed", ["fit", "fit", "fit", "later"])


def test_objects_that_are_called_like_functions_work(seen: Any) -> None:
    assert train(Trainer())(5) == 5
    assert train(functools.partial(Trainer(), 6))() == 6
    assert seen() == ("completed", ["called", "called"])


def test_name_docstring_and_signature_are_kept() -> None:
    @train
    def work(x: int, experiment: Experiment, *, y: str = "a") -> float:
        """What it does."""
        return 0.5

    assert (work.__name__, work.__doc__, work.__module__) == ("work", "What it does.", __name__)
    assert str(inspect.signature(work)) == "(x: 'int', *, y: 'str' = 'a') -> 'float'"
    assert inspect.unwrap(work) is work.__wrapped__


# -- arguments of the decorator ---------------------------------------------------------------------------------------


def test_a_name_may_come_from_the_arguments_of_the_call(seen: Any) -> None:
    @ml_dash_experiment(name=lambda seed, rate: f"seed-{seed}-{rate}", project="cv", local_path="runs")
    def by_name(experiment: Experiment, rate: float = 0.1, seed: int = 0) -> str:
        return experiment.name

    @ml_dash_experiment(name=lambda *args, **kwargs: f"{args}-{sorted(kwargs)}", project="cv", local_path="runs")
    def with_all(a: int, experiment: Experiment, b: int = 1) -> str:
        return experiment.name

    assert by_name() == "seed-0-0.1"
    assert by_name(seed=7) == by_name(0.1, 7) == "seed-7-0.1"
    assert with_all(1, b=2) == "(1,)-['b']"


def test_a_name_that_is_none_is_refused_at_the_call() -> None:
    @ml_dash_experiment(name=lambda x: x, project="cv", local_path="runs")
    def work(x: str) -> None:
        raise AssertionError("it ran")

    with pytest.raises(ml_dash.InvalidName, match='name "a/b" contains "/"'):
        work("a/b")


def test_keywords_are_those_of_experiment(make: Make) -> None:
    @ml_dash_experiment("first", "cv", local_path="runs", tags=["a"], description="d", metadata={"k": 1}, folder="f")
    def work() -> None:
        pass

    work()
    assert (make().tags, make().description, make().metadata, make().folder) == (["a"], "d", {"k": 1}, "f")


def test_without_any_path_it_goes_to_the_default_place(tmp_path: Path) -> None:
    @ml_dash_experiment(name="first", project="cv")
    def work(experiment: Experiment) -> Path:
        return experiment.path

    assert work() == tmp_path / ".ml-dash" / "cv" / "first"


@pytest.mark.parametrize(
    "decorate",
    [
        lambda: ml_dash_experiment(_first),
        lambda: ml_dash_experiment(Trainer),
        lambda: ml_dash_experiment(),
        lambda: ml_dash_experiment("name"),
        lambda: ml_dash_experiment(project="project"),
        lambda: ml_dash_experiment(Trainer, "project"),
    ],
)
def test_without_its_arguments_it_is_a_type_error_that_shows_them(decorate: Any) -> None:
    text = r'use @ml_dash_experiment\(name="my-experiment", project="project"\)'
    with pytest.raises(TypeError, match=text) as caught:
        decorate()
    assert isinstance(caught.value, UnsupportedType)


@pytest.mark.parametrize("target", [Trainer, 5, None])
def test_it_is_refused_on_what_is_no_function(target: Any) -> None:
    with pytest.raises(TypeError, match="decorates functions and methods only"):
        train(target)


def test_an_unknown_keyword_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"no keyword 'tag'; it takes those of Experiment: name, project, "):
        ml_dash_experiment(name="first", project="cv", tag=["a"])
