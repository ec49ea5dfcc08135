"""The public surface is what docs/api.md and docs/errors.md list: no more, no less, the same signatures."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import ml_dash

DOCS = Path(__file__).parent.parent / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "errors.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """Documented name → the text of its section."""
    parts = re.split(r"^## `(\w+)`$", API, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def is_error(name: str) -> bool:
    value = getattr(ml_dash, name)
    return isinstance(value, type) and issubclass(value, BaseException)


def test_every_public_name_is_documented_and_every_documented_name_is_public() -> None:
    public = {name for name in ml_dash.__all__ if not is_error(name)}
    assert public == set(sections())


def test_every_public_error_is_on_its_page() -> None:
    assert [name for name in ml_dash.__all__ if is_error(name) and f"`{name}`" not in ERRORS] == []


def test_every_error_on_the_page_exists_and_is_what_the_page_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", ERRORS, re.MULTILINE)
    assert len(rows) > 10
    for name, base in rows:
        error = getattr(ml_dash, name, None) or getattr(ml_dash.errors, name)
        parent = getattr(ml_dash, base, None) or getattr(__import__("builtins"), base)
        assert issubclass(error, parent), f"{name} is no {base}"
        assert issubclass(error, ml_dash.MLDashError)


def test_names_can_be_imported_and_star_import_gives_just_them() -> None:
    assert sorted(set(ml_dash.__all__)) == sorted(ml_dash.__all__)
    namespace: dict[str, object] = {}
    exec("from ml_dash import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(ml_dash.__all__)


@pytest.mark.parametrize("name", [n for n in sections() if inspect.isclass(getattr(ml_dash, n, None))])
def test_every_public_member_of_a_class_is_documented(name: str) -> None:
    section = sections()[name]
    value = getattr(ml_dash, name)
    own = {n for kind in value.__mro__ if kind.__module__.startswith("ml_dash") for n in vars(kind)}
    members = {n for n in own if not n.startswith("_")} - set(vars(_foreign_base(value)))
    missing = [member for member in sorted(members) if not re.search(rf"`{member}[`(]", section)]
    assert not missing


def _foreign_base(value: type) -> type:
    """The nearest base that is not ours: what it has needs no words from us."""
    return next(kind for kind in value.__mro__ if not kind.__module__.startswith("ml_dash"))


def documented_signatures() -> list[tuple[str, str]]:
    return [
        (name, block)
        for name, text in sections().items()
        for block in re.findall(r"^```\{code-block\} python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("name", "text"), documented_signatures(), ids=lambda value: str(value)[:20])
def test_signatures_are_as_documented(name: str, text: str) -> None:
    tree = ast.parse(f"def {text.strip()}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    documented = tree.args
    actual = inspect.signature(getattr(ml_dash, name)).parameters
    if documented.kwarg is not None:  # "the keywords of Experiment": those that the class has
        expected = set(inspect.signature(ml_dash.Experiment).parameters)
        assert expected - set(actual) == set() or any(p.kind is p.VAR_KEYWORD for p in actual.values())
        return
    positional = [a.arg for a in documented.args]
    keyword = [a.arg for a in documented.kwonlyargs]
    assert [*positional, *keyword] == list(actual)
    assert keyword == [n for n, p in actual.items() if p.kind is p.KEYWORD_ONLY]
    defaults = dict(zip(reversed(positional), reversed(documented.defaults), strict=False))
    defaults |= {n: d for n, d in zip(keyword, documented.kw_defaults, strict=True) if d is not None}
    for parameter in actual.values():
        if parameter.default is parameter.empty:
            assert parameter.name not in defaults
        else:
            assert parameter.default == ast.literal_eval(defaults[parameter.name]), parameter.name
