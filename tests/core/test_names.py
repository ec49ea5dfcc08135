"""Names of projects, experiments, metrics and files, and the paths that stand for them."""

from __future__ import annotations

import random
import re
import string
import unicodedata
from enum import Enum
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_dash.core.names import (
    check_filename,
    check_metric_name,
    check_name,
    check_prefix,
    clash_key,
    experiment_id,
    file_id,
    file_path,
    metric_id,
    metric_path,
)
from ml_dash.errors import InvalidName, UnsupportedType

# What breaks naive encodings: each of these is a legal metric name.
NASTY = [
    ".", "..", "...", "/", "//", "a//b", "/abs", "a/", "a/../b", "../../etc/passwd", "a/./b", "C:", "C:/x",
    "\\", "a\\b", "\\\\host\\share", "CON", "con", "Con.txt", "aux", "nul.tar.gz", "COM1", "com¹", "lpt0",
    "conin$", "con ", "con .txt", "CON.", "end.", "end ", " lead", " ", ". ", " .", "~", "-", "-rf",
    "$HOME", "a%b", "%", "%%", "%-", "%+", "%2E", "%2e", "%00", "%41", "A", "a", "data.jsonl",
    "DATA.JSONL", "metadata.json", "a/data.jsonl", "data.jsonl/a", "data.jsonl.", ".journal",
    ".files_metadata.json", "é", "e\u0301", "\u0301", "ﬁ", "fi", "ß", "ss", "\u017f", "s", "S", "K",
    "\u212a", "k", "İ", "i̇", "\u0131", "\u03c3", "\u03c2", "Σ", "\u202egpj.exe", "\u200d", "a\u200db",
    "ab", "\ufeff", "\u2028", "日本語", "が", "か\u3099", "한국", "\u1112\u1161\u11ab", "😀", "👩\u200d🚀",
    "x" * 140, "x" * 141, "x" * 143, "x" * 255, "x" * 256, "X" * 60, "é" * 71, "😀" * 250, "a/" * 499 + "a",
    "/" * 1000, "%" * 1000, "<>:\"|?*", "train/loss", "val acc", "lr-group_0", "loss", "1", "a" * 400,
    "a" * 100 + "/" + "b" * 290,
]  # fmt: skip

ORDINARY = [
    "loss", "train/loss", "val acc", "lr-group_0", "1", "grad.norm", "a=b", "f1@0.5", "x,y;z", "(a)[b]{c}",
    "größe", "日本語/損失", "😀", "a+b", "it's", "Accuracy", "data.json", "conduit", "com", "com10",
]  # fmt: skip

PIECES = [*"aAb/.% é-+", "..", "%2E", "%25", "data.jsonl", "con", "e\u0301"]
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40) | st.lists(
    st.sampled_from(PIECES), min_size=1, max_size=8
).map("".join)
long_names = st.tuples(names, st.integers(1, 30)).map(lambda pair: (pair[0] * pair[1])[:240])


PART = "%|(?:[^%]|%[0-9A-F]{2})*(?:%[-+][0-9a-f]{40})?"


def is_safe(path: str) -> bool:
    """A relative POSIX path that no system reads as anything but folders below the one it starts in."""
    parts = path.split("/")
    return (
        len(path.encode()) <= 400
        and all(re.fullmatch(PART, part) for part in parts)
        and all(part[0] != "." and part[-1] not in ". " for part in parts)
        and not set('<>:"|?*\\').intersection(path)
        and not PurePosixPath(path).is_absolute()
        and not any(PurePosixPath(part.split(".")[0].rstrip()).name.lower() in DEVICES for part in parts)
    )


DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {p + d for p in ("com", "lpt") for d in "0123456789¹²³"}


def alike(path: str) -> str:
    """What is left of a path on a file system that ignores case, normal form and invisible characters."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", path).casefold())
    return "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Mn"))


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_metric_name_is_its_own_path(name: str) -> None:
    assert metric_path(name) == name


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("a//b", "a/%/b"),
        ("/abs", "%/abs"),
        ("a/", "a/%"),
        ("100%", "100%25"),
        ("data.jsonl", "%64ata.jsonl"),
        ("run/Metadata.json", "run/%4Detadata.json"),
        ("CON", "%43ON"),
        ("nul.x", "%6Eul.x"),
        ("end.", "end%2E"),
        ("p<0.05", "p%3C0.05"),
        ("C:\\x", "C%3A%5Cx"),
    ],
)
def test_the_escapes_are_these(name: str, path: str) -> None:
    assert metric_path(name) == path


def test_a_case_insensitive_store_escapes_upper_case_and_what_has_another_normal_form() -> None:
    assert metric_path("Train/Loss", fold_case=True) == "%54rain/%4Coss"
    assert metric_path("é", fold_case=True) == "%C3%A9"
    assert metric_path("日本語/한국", fold_case=True) == "日本語/한국"
    assert metric_path("loss", fold_case=True) == "loss"
    assert not any(metric_path(letter, fold_case=True) == letter for letter in string.ascii_uppercase)


def test_names_that_break_naive_encodings_never_share_a_path() -> None:
    for fold in (False, True):
        paths = {name: metric_path(name, fold) for name in NASTY}
        assert all(is_safe(path) for path in paths.values()), [p for p in paths.values() if not is_safe(p)]
        assert len(set(paths.values())) == len(NASTY)
    folded = {alike(metric_path(name, fold_case=True)) for name in NASTY}
    assert len(folded) == len(NASTY)


def test_a_metric_folder_is_never_where_another_metric_keeps_a_file() -> None:
    for fold in (False, True):
        paths = {metric_path(name, fold) for name in NASTY}
        kept = {f"{path}/{file}" for path in paths for file in ("data.jsonl", "metadata.json")}
        assert not paths & kept


@given(names | long_names, names | long_names, st.booleans())
@example("a%2", "a%\u0302", False)
@example("A", "%41", True)
@example("%", "/", False)
def test_two_metric_names_never_share_a_path(one: str, other: str, fold: bool) -> None:
    assert (metric_path(one, fold) == metric_path(other, fold)) == (one == other)


@given(names | long_names, st.booleans())
def test_a_metric_path_is_safe_and_leads_back_to_its_name(name: str, fold: bool) -> None:
    path = metric_path(name, fold)
    assert is_safe(path)
    assert all(len(part.encode()) <= 140 for part in path.split("/"))
    if "%-" not in path and "%+" not in path:
        assert "/".join("" if part == "%" else unquote(part, errors="strict") for part in path.split("/")) == name


@given(st.text(st.sampled_from("aAbB%/. \u00e9e\u0301s\u017fKk\u212a"), min_size=1, max_size=6), st.randoms())
def test_names_that_look_alike_stay_apart_on_a_case_insensitive_store(name: str, rng: random.Random) -> None:
    variant = "".join(rng.choice([c, c.swapcase(), c.casefold(), unicodedata.normalize("NFD", c)]) for c in name)
    same = alike(metric_path(name, True)) == alike(metric_path(variant, True))
    assert same == (name == variant)


def test_twenty_thousand_random_names_have_twenty_thousand_paths() -> None:
    rng = random.Random(25)
    alphabet = "aAbB/.% \\:-+~éÉ\u0301日😀\u202e" + "data.jsonl"
    found = {"".join(rng.choices(alphabet, k=rng.choice([1, 2, 5, 20, 120, 150, 300]))) for _ in range(20_000)}
    for fold in (False, True):
        paths = {metric_path(name, fold) for name in found}
        assert len(paths) == len(found)
        assert all(map(is_safe, paths))


def test_paths_work_on_a_real_file_system_and_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "case").touch()
    fold = (tmp_path / "CASE").exists()
    for position, name in enumerate(NASTY):
        folder = tmp_path / metric_path(name, fold)
        folder.mkdir(parents=True, exist_ok=True)
        assert tmp_path in folder.resolve().parents
        with (folder / "data.jsonl").open("x") as file:
            file.write(str(position))
    for position, name in enumerate(NASTY):
        assert (tmp_path / metric_path(name, fold) / "data.jsonl").read_text() == str(position)


# Names of projects and experiments


@pytest.mark.parametrize("name", ["cv", "a b", "ünïcode", "x" * 200, "é" * 100, "a..b", "v1.0", "-x", "~", "C:", "😀"])
def test_legal_project_names_are_returned_as_they_are(name: str) -> None:
    assert check_name("project", name) == name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "empty"),
        (".hidden", 'starts with "."'),
        ("..", 'starts with "."'),
        ("../cv", 'starts with "."'),
        ("a/b", 'contains "/"'),
        ("a\\b", 'contains "\\"'),
        ("a\nb", "control character U+000A"),
        ("a\0b", "control character U+0000"),
        ("a\x7fb", "control character U+007F"),
        ("a\x85b", "control character U+0085"),
        ("a\ud800b", "lone surrogate U+D800"),
        ("x" * 201, "longer than 200 bytes"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)
def test_an_illegal_project_name_is_refused_with_what_is_wrong(name: str, found: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name("project", name)
    message = str(caught.value)
    assert message.startswith("project ")
    assert found in message
    assert "at most 200 bytes" in message
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("value", [None, 1, b"x", Path("x"), ["x"]])
def test_a_name_that_is_no_text_is_a_type_error_that_names_the_argument(value: object) -> None:
    with pytest.raises(UnsupportedType, match=r"^name is \w+, expected str"):
        check_name("name", value)


def test_a_subclass_of_str_gives_its_text() -> None:
    class Split(str, Enum):
        TRAIN = "train"

    for checked in (
        check_name("name", Split.TRAIN),
        check_metric_name(Split.TRAIN),
        check_prefix(Split.TRAIN),
    ):
        assert checked == "train"
        assert type(checked) is str


# Metric names


@pytest.mark.parametrize("name", NASTY)
def test_every_nasty_name_is_a_legal_metric_name(name: str) -> None:
    assert check_metric_name(name) == name


@pytest.mark.parametrize("name", ["", "a\n", "\0", "\x9f", "\udc80", "x" * 1001, "é" * 501, "x" * 10_000])
def test_an_illegal_metric_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="metric name"):
        check_metric_name(name)


def test_a_metric_name_of_a_thousand_bytes_is_legal() -> None:
    assert check_metric_name("é" * 500) == "é" * 500


# Files


@pytest.mark.parametrize(
    ("prefix", "canonical"),
    [
        ("/models", "models"),
        ("/models/", "models"),
        ("models", "models"),
        ("", ""),
        ("/", ""),
        ("///", ""),
        (".", ""),
        ("/a//b/./c/", "a/b/c"),
        ("a b/ü", "a b/ü"),
        ("..a/b..", "..a/b.."),
        (PurePosixPath("/models/x"), "models/x"),
    ],
)
def test_prefixes_have_one_canonical_form(prefix: object, canonical: str) -> None:
    assert check_prefix(prefix) == canonical


@pytest.mark.parametrize("prefix", ["..", "/..", "a/../b", "a/..", "a\nb", "\0", "\ud800", "x" * 1001])
def test_an_illegal_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidName, match="prefix"):
        check_prefix(prefix)


@pytest.mark.parametrize("prefix", [None, 3, b"/models"])
def test_a_prefix_that_is_no_text_is_a_type_error(prefix: object) -> None:
    with pytest.raises(UnsupportedType, match="prefix"):
        check_prefix(prefix)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "\ud800", "x" * 1001])
def test_an_illegal_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="file name"):
        check_filename(name)


@pytest.mark.parametrize("name", ["model.pth", "a b.txt", "epoch=3.ckpt", "README", "x" * 200, "data.jsonl", "Ünï.bin"])
def test_an_ordinary_file_keeps_its_name(name: str) -> None:
    assert file_path("", check_filename(name)) == name
    assert file_path("models/best", name) == f"models/best/{name}"


@pytest.mark.parametrize(
    ("prefix", "filename", "path"),
    [
        ("", ".files_metadata.json", "%2Efiles_metadata.json"),
        (".hydra", "config.yaml", "%2Ehydra/config.yaml"),
        ("a", "10:00.log", "a/10%3A00.log"),
        ("", "nul", "%6Eul"),
    ],
)
def test_what_our_own_files_or_a_system_claim_is_escaped(prefix: str, filename: str, path: str) -> None:
    assert file_path(prefix, filename) == path


file_parts = st.text(st.sampled_from("ab.%é-+ :"), min_size=1, max_size=5).filter(lambda t: t not in (".", ".."))
files = st.tuples(st.lists(file_parts | st.just("p" * 250), max_size=4).map("/".join), file_parts | st.just("n" * 201))


@given(files, files)
def test_two_files_never_share_a_path(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (file_path(*one) == file_path(*other)) == (one == other)
    assert is_safe(file_path(*one))


@pytest.mark.parametrize(
    ("one", "other"),
    [("README", "readme"), ("é", "e\u0301"), ("ß", "SS"), ("\u017f", "S"), ("\u212a", "k"), ("ﬁ", "FI")],
)
def test_paths_that_a_case_insensitive_store_confuses_have_one_clash_key(one: str, other: str) -> None:
    assert clash_key(f"a/{one}") == clash_key(f"A/{other}")


def test_other_paths_have_other_clash_keys() -> None:
    assert len({clash_key(path) for path in ("a", "b", "a/b", "é", "è", "日", "本")}) == 7


# Identifiers


def test_identifiers_are_fixed_for_ever() -> None:
    """Values of the first release: the same experiment has the same id on every machine."""
    assert experiment_id("cv", "resnet") == "14321991450851770344"
    assert metric_id("14321991450851770344", "train/loss") == "13487907686403847243"
    assert file_id(bytes(range(16)), 7) == "16875368502595909477"


@given(st.tuples(names, names), st.tuples(names, names))
def test_different_experiments_have_different_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (experiment_id(*one) == experiment_id(*other)) == (one == other)
    assert experiment_id(*one).isdecimal()
