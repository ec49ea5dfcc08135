"""Log entries: recorded, read, and on disk."""

from __future__ import annotations

import gc
import logging
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment, InvalidValue, LogHandler, LogLevel, UnsupportedType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.conftest import Make

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def _entries(experiment: Experiment, **bounds: Any) -> list[tuple[str, str, Any]]:
    logs = experiment.log().read(**bounds)["logs"]
    return [(entry["level"], entry["message"], entry["metadata"]) for entry in logs]


# -- recording --------------------------------------------------------------------------------------------------------


def test_an_entry_has_a_message_a_level_and_metadata(opened: Experiment) -> None:
    assert opened.log("one") is None
    opened.log("two", "warn")
    opened.log("three", level="error", metadata={"a": 1}, b=2)
    assert _entries(opened) == [("info", "one", None), ("warn", "two", None), ("error", "three", {"a": 1, "b": 2})]


def test_extra_keywords_join_the_metadata_and_win(opened: Experiment) -> None:
    metadata = {"a": 1, "b": 1}
    opened.log("x", metadata=metadata, b=2, c=3)
    assert _entries(opened) == [("info", "x", {"a": 1, "b": 2, "c": 3})]
    assert metadata == {"a": 1, "b": 1}


def test_empty_metadata_is_not_the_same_as_none(opened: Experiment) -> None:
    opened.log("none")
    opened.log("empty", metadata={})
    opened.log(metadata={}).info("empty builder")
    opened.log().info("builder")
    assert [metadata for _, _, metadata in _entries(opened)] == [None, {}, {}, None]


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ("debug", "debug"), ("INFO", "info"), ("Warn", "warn"), ("warning", "warn"), ("ERROR", "error"),
        ("fatal", "fatal"), ("CRITICAL", "fatal"), (LogLevel.WARN, "warn"),
    ],
)  # fmt: skip
def test_levels_are_taken_in_any_case_and_under_both_names(opened: Experiment, given: Any, level: str) -> None:
    opened.log("x", level=given)
    assert opened.log().read()["logs"][0]["level"] == level
    assert LogLevel.validate(given) == level


@pytest.mark.parametrize("level", ["loud", "", None, 20, ["info"], b"info"])
def test_any_other_level_is_refused_and_the_five_are_named(opened: Experiment, level: Any) -> None:
    text = rf"log level {re.escape(repr(level))} is unknown; use debug, info, warn, error or fatal"
    with pytest.raises(ValueError, match=text):
        opened.log("x", level=level)
    with pytest.raises(InvalidValue, match=text):
        LogLevel.validate(level)
    assert opened.log().read()["total"] == 0


def test_the_enum_has_the_five_levels() -> None:
    assert [(level.name, level.value) for level in LogLevel] == [
        ("DEBUG", "debug"), ("INFO", "info"), ("WARN", "warn"), ("ERROR", "error"), ("FATAL", "fatal"),
    ]  # fmt: skip


def test_a_builder_shares_metadata_between_entries(opened: Experiment) -> None:
    builder = opened.log(metadata={"run": 1}, epoch=2)
    builder.debug("a")
    builder.info("b", epoch=3)
    builder.warn("c", self="s", message="m")
    builder.error("d")
    builder.fatal("e")
    assert _entries(opened) == [
        ("debug", "a", {"run": 1, "epoch": 2}),
        ("info", "b", {"run": 1, "epoch": 3}),
        ("warn", "c", {"run": 1, "epoch": 2, "self": "s", "message": "m"}),
        ("error", "d", {"run": 1, "epoch": 2}),
        ("fatal", "e", {"run": 1, "epoch": 2}),
    ]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda e: e.log("\ud800"), InvalidValue, r'message "\\ud800" holds a lone surrogate'),
        (lambda e: e.log("x", metadata=[1]), UnsupportedType, "metadata is list, expected a mapping"),
        (lambda e: e.log(metadata=5), UnsupportedType, "metadata is int, expected a mapping"),
        (lambda e: e.log("x", metadata={1: 2}), UnsupportedType, "the key 1 is int, expected str"),
        (lambda e: e.log("x", big=2**64), InvalidValue, r'"big" is 18446744073709551616, outside -2\*\*63 to'),
        (lambda e: e.log("x", text="\udfff"), InvalidValue, '"text" holds a lone surrogate'),
        (lambda e: e.log("x", **{"\udfff": 1}), InvalidValue, "holds a lone surrogate"),
        (lambda e: e.log(level="warn"), UnsupportedType, r"log\(\) was given level='warn' and no message"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_recorded(opened: Experiment, call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        call(opened)
    assert opened.log().read()["total"] == 0


def test_values_of_metadata_come_back_as_they_were(opened: Experiment) -> None:
    given = {"nan": float("nan"), "inf": float("-inf"), "text": "NaN", "zero": -0.0, "list": [1, [None, True]]}
    given["bytes"] = b"\0\xff"
    opened.log("x", metadata={"deep": given}, **given)
    ((_, _, metadata),) = _entries(opened)
    expected = {**given, "bytes": "AP8="}
    assert repr(metadata) == repr({"deep": expected, **expected})


def test_anything_else_in_metadata_is_kept_as_text(opened: Experiment) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "o" * 5000

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    opened.log("x", odd=Odd(), broken=Broken(), a_set={1})
    ((_, _, metadata),) = _entries(opened)
    assert metadata == {"odd": "o" * 1000, "broken": "<Broken: unprintable>", "a_set": "{1}"}


@pytest.mark.parametrize("size", [100, 1 << 20, 10 << 20])
def test_a_message_of_any_length_is_kept(opened: Experiment, size: int) -> None:
    message = "é" * (size // 2)
    opened.log(message)
    opened.log("after")
    logs = opened.log().read()["logs"]
    assert (logs[0]["message"], logs[1]["message"]) == (message, "after")


@pytest.mark.parametrize("message", ["", "two\nlines", "\x00\x1b[31m", "🚀 \u2028 \ufeff", '"quotes" \\ back'])
def test_any_text_is_a_message(opened: Experiment, message: str, read_lines: Any) -> None:
    opened.log(message)
    opened.close()
    (line,) = read_lines(opened.path / "logs" / "logs.jsonl")
    assert line["message"] == message


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten(opened: Experiment) -> Experiment:
    for number in range(10):
        opened.log(str(number), level="warn" if number % 3 == 0 else "info")
    return opened


@pytest.mark.parametrize(
    ("bounds", "messages", "start", "more"),
    [
        ({}, "0123456789", 0, False),
        ({"limit": 3}, "012", 0, True),
        ({"start_index": 4, "limit": 3}, "456", 4, True),
        ({"start_index": 7, "limit": 3}, "789", 7, False),
        ({"start_index": -2}, "89", 8, False),
        ({"start_index": -100, "limit": 1}, "0", 0, True),
        ({"start_index": 10}, "", 10, False),
        ({"level": "warn"}, "0369", 0, False),
        ({"level": "WARNING", "start_index": 1, "limit": 2}, "36", 1, True),
        ({"level": LogLevel.WARN, "start_index": -1}, "9", 3, False),
        ({"level": "fatal"}, "", 0, False),
    ],
)
def test_a_page_has_what_was_asked_for(
    ten: Experiment, bounds: dict[str, Any], messages: str, start: int, more: bool
) -> None:
    page = ten.log().read(**bounds)
    assert "".join(entry["message"] for entry in page["logs"]) == messages
    assert {key: value for key, value in page.items() if key != "logs"} == {
        "startIndex": start, "endIndex": start + len(messages) - 1, "total": len(messages), "hasMore": more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "error", "text"),
    [
        ({"limit": 10_001}, InvalidValue, "limit is 10001; use 1 to 10,000"),
        ({"limit": -1}, InvalidValue, "limit is -1"),
        ({"limit": 1.5}, UnsupportedType, "limit is float, expected int"),
        ({"start_index": "0"}, UnsupportedType, "start_index is str, expected int"),
        ({"level": "loud"}, InvalidValue, "log level 'loud' is unknown"),
    ],
)
def test_a_page_that_cannot_be_is_refused(ten: Experiment, bounds: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        ten.log().read(**bounds)


def test_a_read_sees_every_entry_made_before_it(opened: Experiment) -> None:
    for number in range(200):
        opened.log(str(number))
        assert opened.log().read(start_index=-1)["logs"][0]["message"] == str(number)


def test_numbers_have_no_gap_across_reopenings_and_refusals(make: Make) -> None:
    for turn in range(3):
        with make() as experiment:
            experiment.log("one")
            with pytest.raises(InvalidValue):
                experiment.log("refused", big=2**64)
            experiment.log("two")
            numbers = [entry["sequenceNumber"] for entry in experiment.log().read()["logs"]]
            assert numbers == list(range(2 * turn + 2))


def test_a_folder_that_was_edited_does_not_change_what_is_read(make: Make) -> None:
    with make() as experiment:
        for number in range(5):
            experiment.log(str(number))
    path = experiment.path / "logs" / "logs.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"message":"3"', b'"message":"X"')[:-40])
    with make(read_only=True) as reader:
        assert [message for _, message, _ in _entries(reader)] == ["0", "1", "2", "3", "4"]


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_lines_are_strict_json_with_keys_in_order(make: Make, read_lines: Any) -> None:
    begun = datetime.now(timezone.utc)
    with make() as experiment:
        experiment.log("one", loss=float("nan"), text="NaN")
        experiment.log("two", metadata={})
    text = (experiment.path / "logs" / "logs.jsonl").read_text(encoding="utf-8")
    assert re.fullmatch(
        r'\{"timestamp":"[^"]+","level":"info","message":"one","metadata":\{"loss":"NaN","text":"NaN"\},'
        r'"sequenceNumber":0,"text":\["text"\]\}\n'
        r'\{"timestamp":"[^"]+","level":"info","message":"two","metadata":\{\},"sequenceNumber":1\}\n',
        text,
    )
    for line in read_lines(experiment.path / "logs" / "logs.jsonl"):
        assert TIME.fullmatch(line["timestamp"])
        moment = datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00"))
        assert begun.replace(microsecond=0) <= moment <= datetime.now(timezone.utc)


def test_the_folder_follows_within_a_second_while_the_run_goes_on(opened: Experiment, until: Any) -> None:
    path = opened.path / "logs" / "logs.jsonl"
    opened.log("one")
    until(lambda: path.exists() and b'"one"' in path.read_bytes())
    opened.log("two")
    until(lambda: b'"two"' in path.read_bytes())


# -- the standard library's records -----------------------------------------------------------------------------------


@pytest.fixture
def logger(opened: Experiment) -> Iterator[logging.Logger]:
    logger = logging.getLogger("training.loop")
    handler = LogHandler(opened)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_records_of_the_standard_library_become_entries(opened: Experiment, logger: logging.Logger) -> None:
    logger.debug("a")
    logger.info("%s of %d", "b", 2)
    logger.warning("c", extra={"loss": 0.5})
    logger.error("d")
    logger.critical("e")
    logger.log(25, "f")
    base = {"logger": "training.loop"}
    assert _entries(opened) == [
        ("debug", "a", base), ("info", "b of 2", base), ("warn", "c", {"loss": 0.5, **base}), ("error", "d", base),
        ("fatal", "e", base), ("info", "f", base),
    ]  # fmt: skip


def test_exceptions_and_stacks_of_records_are_kept(opened: Experiment, logger: logging.Logger) -> None:
    try:
        raise ValueError("wrong \udc80")
    except ValueError:
        logger.exception("caught")
    logger.info("here", stack_info=True)
    logger.info("nothing passes", exc_info=True)
    caught, here, nothing = (metadata for _, _, metadata in _entries(opened))
    assert caught["exception"].endswith("ValueError: wrong ?")
    assert "test_logs.py" in here["stack"]
    assert nothing == {"logger": "training.loop"}


def test_a_formatter_that_was_set_makes_the_message(opened: Experiment, logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(logging.Formatter("<%(levelname)s> %(message)s"))
    logger.info("x")
    assert _entries(opened)[0][1] == "<INFO> x"


def test_levels_of_the_handler_are_respected(opened: Experiment, logger: logging.Logger) -> None:
    logger.handlers[0].setLevel(logging.ERROR)
    logger.info("no")
    logger.error("yes")
    assert [message for _, message, _ in _entries(opened)] == ["yes"]


def test_our_own_messages_are_not_recorded(opened: Experiment) -> None:
    root, handler = logging.getLogger(), LogHandler(opened)
    root.addHandler(handler)
    level, root.level = root.level, logging.DEBUG
    try:
        opened.log("x", odd=object())
        logging.getLogger("ml_dash.sub").warning("ours")
        logging.getLogger("filelock").debug("a library of ours")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert [message for _, message, _ in _entries(opened)] == ["x"]


def test_a_handler_is_silent_once_its_experiment_is_closed(
    opened: Experiment, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    opened.close()
    logger.error("late")
    assert capsys.readouterr().err == ""


def test_a_record_that_cannot_be_formatted_is_told_as_logging_does(
    opened: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    LogHandler(opened).handle(logging.makeLogRecord({"name": "x", "msg": "%d", "args": ("no number",)}))
    assert "--- Logging error ---" in capsys.readouterr().err
    assert _entries(opened) == []


def test_extra_fields_of_a_record_may_be_of_any_kind(opened: Experiment, logger: logging.Logger) -> None:
    logger.info("x", extra={"path": Path("/tmp"), "odd": set})
    assert _entries(opened)[0][2] == {"path": "/tmp", "odd": "<class 'set'>", "logger": "training.loop"}


def test_anything_but_text_is_logged_as_its_text(opened: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    for message in (5, 0.5, [1, 2], Path("a"), {"loss": 0.5}, {"loss": 0.25}):
        opened.log(message)
    opened.log(step=1).warn(7)
    assert [entry["message"] for entry in opened.log().read()["logs"]] == [
        "5", "0.5", "[1, 2]", "a", "{'loss': 0.5}", "{'loss': 0.25}", "7",
    ]  # fmt: skip
    (told,) = [record.getMessage() for record in caplog.records if "mapping" in record.getMessage()]
    assert "metric(name).append(value=...)" in told


def test_an_exception_is_logged_with_its_type_and_traceback(
    opened: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_API_KEY", "mld_secret")
    try:
        raise ValueError("bad batch, said mld_secret")
    except ValueError as error:
        opened.log(error, level="error", step=3)
    (entry,) = opened.log().read()["logs"]
    assert (entry["level"], entry["message"]) == ("error", "bad batch, said ***")
    assert entry["metadata"] is not None
    assert (entry["metadata"]["exceptionType"], entry["metadata"]["step"]) == ("ValueError", 3)
    assert 'raise ValueError("bad batch' in entry["metadata"]["exception"]


def test_a_message_without_a_text_is_refused(opened: Experiment) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(UnsupportedType, match="message is Broken, and str"):
        opened.log(Broken())
    assert opened.log().read()["total"] == 0


def test_a_log_call_that_records_nothing_says_so(opened: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    opened.log(loss=0.5)
    gc.collect()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "log(loss) without a message recorded nothing" in told
    assert "metric(name).append(value=...)" in told
    caplog.clear()
    opened.log(epoch=1).info("said")
    opened.log(metadata={"a": 1}).read()
    opened.log().read()
    gc.collect()
    assert caplog.records == []
    assert opened.log().read()["total"] == 1
