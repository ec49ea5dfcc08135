"""Queries: what they mean, how wrong ones are answered, and that nothing a value may be raises."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import InvalidQuery, InvalidValue
from ml_dash.reading.completion import complete
from ml_dash.reading.facts import MISSING, Facts, SeriesFacts, value_of
from ml_dash.reading.where import (
    Sort,
    field_text,
    parse,
    parse_columns,
    parse_sort,
    value_text,
)

from .queries import HOUR_NS, NOW_NS, meant, some_facts, some_query

RUN = Facts(
    id="7",
    project="vision",
    name="resnet-50",
    status="failed",
    title="The best",
    names=["first name"],
    folder="a/b",
    tags=["baseline", "gpu"],
    description="A residual network",
    created_ns=NOW_NS - 3 * HOUR_NS,
    updated_ns=NOW_NS - HOUR_NS,
    ended_ns=NOW_NS - HOUR_NS,
    host="gpu1",
    commit="3f0a11c29be2701d0000000000000000000000ab",
    files=2,
    size=10_000_000,
    points=1000,
    params={
        "lr": 0.1,
        "text": "0.1",
        "epochs": 1,
        "flag": True,
        "none": None,
        "layers": [3, 4],
        "a b": "x",
        "big": 2**62,
    },
    metrics={
        "loss": SeriesFacts(100, 2.0, 0.3, 0.1, 2.0, 0.9, 99),
        "loss.min": SeriesFacts(1, 5, 5, 5, 5, 5.0, None),
        "train/loss": SeriesFacts(3, float("nan"), float("nan"), None, None, None, 2),
    },
)


def holds(text: str) -> bool:
    return parse(text, NOW_NS).matches(RUN)


@pytest.mark.parametrize(
    "text",
    [
        "status = failed", "status != running", "status in (failed, completed)", "status not in (running)",
        "STATUS_OR or status = failed", "params.lr = 0.1", "params.lr = 1e-1", "params.lr >= 0.1 and params.lr <= 0.1",
        'params.text = "0.1"', "params.epochs = 1.0", "params.epochs != 2", "params.flag = true", "params.none = null",
        "params.layers = 3", "params.layers > 3", "params.layers != 5", 'params."a b" = x', "params.big > 1e18",
        "metrics.loss < 0.31", "metrics.loss.max = 2", "metrics.loss.min = 5", "metrics.loss.count >= 100",
        "metrics.loss.step = 99", 'metrics."train/loss" = nan', "metrics.train/loss.count = 3", "tag:baseline",
        'tag:"gpu" tag:baseline', "tags = gpu", "tags ~ ^base", "tag != other", "resnet", '"RESIDUAL net"', "FIRST",
        'name = "The best"', "name = resnet-50", 'name = "first name"', "name ~ ^res.*50$", "folder = a/b",
        "created < -2h", "created > -4h", "updated >= today", "created = today", "created != yesterday",
        "ended < now", "ended > 2025-11-24T14:00 ended < 2025-11-24T16:00Z", "duration = 2h", "duration > 1h59m",
        "duration <= 7200", "size = 10MB", "size < 10MiB", "size > 9.9MB", "files.count = 2", "files >= 2",
        "points = 1k", "archived = false", "host = gpu1", "commit = 3f0a11c", "commit = 3F0A", "id = 7",
        "not (status = running or status = completed)", "not params.nothing = 1", "(resnet)", "description ~ network",
    ],
)  # fmt: skip
def test_a_query_that_is_true_of_the_run_matches_it(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "status = running", "params.lr = 0.2", 'params.lr = "0.1"', "params.text = 0.1", "params.flag = 1",
        "params.flag != true", "params.epochs = true", 'params.epochs = "1"', "params.nothing != 1", "params.text > 0",
        "params.none = 0", "params.none < 1", "params.layers != 3", "params.nothing not in (1)", "metrics.nothing < 1",
        "metrics.nothing.min != 1", "metrics.train/loss < 1", "metrics.train/loss > 1", "metrics.train/loss.min < 9",
        "metrics.loss.min.step < 1", "tag:base", "tag != gpu", "user = ann", "user != ann", "notes ~ .", "transformer",
        "updated < 2025-11-24", "created > 2025-11-24", "created > today", "commit = 3f0b", "name = resnet",
        "not resnet", "resnet transformer", "archived = true", "params.flag < 1", "params.lr ~ 0",
    ],
)  # fmt: skip
def test_a_query_that_is_not_true_of_the_run_does_not_match_it(text: str) -> None:
    assert not holds(text)


def test_and_binds_closer_than_or_and_not_closest() -> None:
    assert str(parse("a or b and not c d")) == '"a" or ("b" and not "c" and "d")'


def test_words_of_the_language_may_be_written_in_capitals() -> None:
    assert str(parse("status IN (failed) AND NOT a OR b")) == '(status in (failed) and not "a") or "b"'


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_query_printed_and_read_again_is_the_same(seed: int) -> None:
    tree = some_query(random.Random(seed))
    again = parse(str(tree), NOW_NS)
    assert again.tree == tree
    assert str(again) == str(tree)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_query_means_what_its_description_says(seed: int) -> None:
    rng = random.Random(seed)
    tree = some_query(rng)
    where = parse(str(tree), NOW_NS)
    for number in range(10):
        facts = some_facts(rng, number)
        assert where.matches(facts) == meant(tree, facts), (str(where), facts)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    _read_or_refused(text)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "status",
                "params.lr",
                "=",
                "!=",
                "<",
                "~",
                "(",
                ")",
                ",",
                "and",
                "or",
                "not",
                "in",
                "tag:",
                '"',
                "'",
                "a",
                "-7d",
                "1",
                "failed",
                ":",
                "&&",
                "==",
                "[",
                "]",
                "metrics.loss",
                "updated",
            ]
        ),
        max_size=9,
    )
)
def test_any_words_are_read_or_refused_with_their_place(words: list[str]) -> None:
    _read_or_refused(" ".join(words))


def _read_or_refused(text: str) -> None:
    refused = None
    try:
        where = parse(text, NOW_NS)
    except InvalidQuery as error:
        refused = error
    if refused is None:
        where.matches(RUN)
        assert parse(str(where), NOW_NS).tree == where.tree
    else:
        assert 0 <= refused.at <= len(text)
        assert "^" in refused.message.splitlines()[-1]
        assert refused.query == text


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("status == failed", 8, "write = for equal"),
        ("status = faild", 9, "did you mean failed?"),
        ("stats = failed", 0, "status"),
        ("lr > 1", 0, "did you mean params.lr or metrics.lr?"),
        ("metric.loss < 1", 0, "did you mean metrics.loss?"),
        ("status:failed", 6, "write status = ..."),
        ("a && b", 2, "write and"),
        ("!a", 0, "write not"),
        ("status in [failed]", 10, "round brackets"),
        ("status in failed", 10, "a list: (failed, interrupted)"),
        ("status = failed and", 19, "a condition is missing"),
        ("params.lr >", 11, "a value is missing"),
        ("(a or b", 7, "close the bracket"),
        ("a)", 1, "there is no ( for this )"),
        ('name = "abc', 7, "close the quote"),
        ("updated > 7 days", 10, "-7d"),
        ("duration > long", 11, "1h30m"),
        ("size > 10XB", 7, "10MB"),
        ("size > 10 MB", 10, "write 10MB without a space"),
        ("duration > 2 h and a", 13, "write 2h without a space"),
        ("points >= 10 k", 13, "write 10k without a space"),
        ("metrics.loss > low", 15, "write a number"),
        ('metrics.loss > "0.1"', 15, "without quotes"),
        ("metrics.loss ~ 1", 13, "write a number"),
        ("status > failed", 7, "equal to one of"),
        ("archived = maybe", 11, "= true or = false"),
        ("archived", 0, "archived = true"),
        ("and a", 0, "a condition is missing"),
        ("a and and b", 6, "a condition is missing"),
        ("name ~ '(a'", 7, "cannot be read"),
        ("", 0, "a condition"),
    ],
)
def test_a_wrong_query_is_shown_with_its_place_and_what_would_be_right(text: str, at: int, said: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        parse(text)
    error = raised.value
    assert isinstance(error, InvalidQuery)
    assert error.at == at
    assert said in str(error)
    what, shown, mark, *_ = str(error).splitlines()
    assert what
    assert shown == f"  {text}"
    assert mark.index("^") == at + 2


def test_conditions_may_be_nested_but_not_without_end() -> None:
    assert str(parse("(" * 1000 + "a" + ")" * 1000)) == '"a"'
    with pytest.raises(InvalidQuery, match="nested"):
        parse("not " * 100 + "a")


def test_of_a_long_query_the_part_around_the_place_is_shown() -> None:
    text = " and ".join(f"params.x{n} = {n}" for n in range(50)) + " and stat = failed"
    with pytest.raises(InvalidQuery) as raised:
        parse(text)
    shown, mark = raised.value.message.splitlines()[1:]
    assert len(shown) < 90
    assert shown[mark.index("^") :].startswith("stat = failed")


def test_the_mark_stands_under_its_place_where_letters_are_wide() -> None:
    with pytest.raises(InvalidQuery) as raised:
        parse("名前 or stat = 実験")
    assert raised.value.at == 6
    assert raised.value.message.splitlines()[1:] == ["  名前 or stat = 実験", "          ^^^^"]


def test_a_query_of_any_length_is_answered_at_once() -> None:
    with pytest.raises(InvalidQuery, match="at most"):
        parse("a " * 10_000)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a*)*b", "(?:a?)+b", "a?" * 40 + "a" * 40, "(x+x+)+y", ".*.*.*.*.*x"]
)
def test_a_regular_expression_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidQuery, match=r"repeats what repeats|too long"):
        parse(f'name ~ "{pattern}"')


@pytest.mark.parametrize(
    "pattern", ["resnet.*", "^[a-z]+-[0-9]+$", "(train|val)/loss", "a{2,5}b", r"v\\d+\\.\\d+", "(?i)x", "colou?r"]
)
def test_everyday_regular_expressions_are_taken(pattern: str) -> None:
    parse(f'name ~ "{pattern}"')


def test_the_slowest_regular_expressions_that_are_taken_end_soon() -> None:
    facts = Facts(id="1", project="p", name="n", status="failed", description="a" * 100_000)
    started = time.process_time()
    for pattern in ("a*b", "a*a*b", "a*a*a*b", "(aaaa?)b"):
        assert not parse(f"description ~ {pattern!r}").matches(facts)
    assert time.process_time() - started < 5


def test_a_search_that_takes_seconds_over_many_experiments_is_given_up() -> None:
    where = parse("description ~ 'a*a*b'")
    facts = Facts(id="1", project="p", name="n", status="failed", description="a" * 100_000)
    started = time.process_time()
    with pytest.raises(InvalidQuery, match="takes too long") as raised:
        any(where.matches(facts) for _ in range(10_000))
    assert raised.value.at == 14
    assert time.process_time() - started < 5


def test_what_must_be_equal_in_every_match_can_be_asked_of_a_database() -> None:
    assert parse("status = FAILED project = p and tag:t and folder = f and params.lr > 1").simple() == {
        "status": "failed", "project": "p", "tag": "t", "folder": "f",
    }  # fmt: skip
    assert parse("status = failed or project = p").simple() == {}
    assert parse("not status = failed").simple() == {}
    assert parse("project != p").simple() == {}
    assert parse("tag:a tag:b").simple() == {"tag": "a"}


def test_fields_are_what_a_query_asks_for() -> None:
    assert parse("params.lr > 1 or not archived = true").fields == {"params.lr", "archived"}


# -- order and columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        ("metrics.val.acc.max:desc", Sort("metrics.val.acc.max", True)), ("params.lr", Sort("params.lr", False)),
        ("name:ASC", Sort("name", False)), ("updated", Sort("updated", True)), ("updated:asc", Sort("updated", False)),
        ('params."a b":desc', Sort("params.a b", True)), ('params."a:b"', Sort("params.a:b", False)),
        ("files:desc", Sort("files.count", True)),
    ],
)  # fmt: skip
def test_an_order_is_a_field_and_a_direction(text: str, sort: Sort) -> None:
    assert parse_sort(text) == sort
    assert parse_sort(str(sort)) == sort


@pytest.mark.parametrize("text", ["name:up", "nam", "", "acc.max"])
def test_a_wrong_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuery):
        parse_sort(text)


def test_columns_are_fields_with_commas_between() -> None:
    assert parse_columns('params.lr, metrics.a b.max,params."a,b",params.lr') == (
        "params.lr",
        "metrics.a b.max",
        "params.a,b",
    )
    assert parse_columns("") == ()
    with pytest.raises(InvalidQuery) as raised:
        parse_columns("params.lr,los")
    assert raised.value.at == 10


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_any_parameter_can_be_asked_for(key: str) -> None:
    name = f"params.{key}"
    assert parse(f"{field_text(name)} = 1").fields == {name}
    assert parse_columns(field_text(name)) == (name,)
    assert parse_sort(f"{field_text(name)}:desc") == Sort(name, True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_text_can_be_asked_for(value: str) -> None:
    facts = Facts(id="1", project="p", name="n", status="failed", params={"x": value})
    assert parse(f"params.x = {value_text(value)}").matches(facts)


def test_a_field_that_is_not_there_is_missing() -> None:
    assert value_of(RUN, "params.nothing") is MISSING
    assert value_of(RUN, "nothing") is MISSING
    assert value_of(RUN, "user") is MISSING
    assert value_of(RUN, "metrics.train/loss.min") is MISSING


# -- completion -------------------------------------------------------------------------------------------------------


def offered(text: str) -> list[str]:
    fields = ["params.lr", "params.a b", "metrics.loss"]
    values = {"params.lr": ["0.1"], "tags": ["baseline", "a b"], "project": ["vision"]}
    return [s.text for s in complete(text, len(text), fields, lambda field: values.get(field, []))]


def test_completion_offers_what_may_come_next() -> None:
    assert {"status", "params.lr", 'params."a b"', "tag:", "not"} <= set(offered(""))
    assert offered("params.") == ["params.lr", 'params."a b"']
    assert offered("sta")[0] == "status"
    assert offered("status = ") == ["running", "completed", "failed", "interrupted"]
    assert offered("status = f") == ["failed"]
    assert offered("tag:ba") == ["baseline"]
    assert offered('tag:"a') == ["baseline", '"a b"'] or offered('tag:"a')[0] == '"a b"'
    assert offered("project in (") == ["vision"]
    assert offered("status ")[:3] == ["=", "!=", "<"]
    assert offered("status = failed ") == ["and", "or"]
    assert "metrics.loss" in offered("status = failed and metr")
    assert offered("status = = ") == []


def test_completion_replaces_the_word_at_the_cursor() -> None:
    text = "status = failed and par"
    (first, *_) = complete(text, len(text), ["params.lr"], lambda field: [])
    assert text[: first.start] + first.text == "status = failed and params.lr"
