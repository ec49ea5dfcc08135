"""What a server takes from its environment for MongoDB and S3, and what it refuses; no secret is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash.errors import InvalidValue
from ml_dash.server.settings import S3Settings, ServerSettings, server_settings

SECRET = "a-secret-key-of-nobody"
KEYS = {"S3_ACCESS_KEY": "AKIAEXAMPLE", "S3_SECRET_KEY": SECRET}


def settings(tmp_path: Path, **environment: str) -> ServerSettings:
    return server_settings(data=tmp_path / "data", env=environment)


def test_without_them_all_is_in_the_data_folder(tmp_path: Path) -> None:
    found = settings(tmp_path, S3_BUCKET="", S3_ENDPOINT="", MONGODB_URI="")
    assert found.s3 is None
    assert found.mongodb_uri is None


def test_a_bucket_alone_is_one_of_aws_with_the_usual_credentials(tmp_path: Path) -> None:
    assert settings(tmp_path, S3_BUCKET="runs").s3 == S3Settings(bucket="runs")


def test_all_of_s3_is_taken(tmp_path: Path) -> None:
    found = settings(
        tmp_path, S3_BUCKET="runs", S3_ENDPOINT="http://minio:9000/", S3_REGION="eu-central-1",
        S3_FORCE_PATH_STYLE="false", S3_PUBLIC_URL="https://files.example.org", **KEYS,
    )  # fmt: skip
    assert found.s3 == S3Settings(
        "runs", "http://minio:9000", "eu-central-1", path_style=False, access_key="AKIAEXAMPLE", secret_key=SECRET,
        public_url="https://files.example.org",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "said", "meant"),
    [("", "", False), ("http://x:1", "", True), ("", "true", True), ("http://x:1", "False", False), ("", "0", False)],
)
def test_the_bucket_is_in_the_path_with_an_endpoint_of_its_own(
    tmp_path: Path, endpoint: str, said: str, meant: bool
) -> None:
    found = settings(tmp_path, S3_BUCKET="runs", S3_ENDPOINT=endpoint, S3_FORCE_PATH_STYLE=said)
    assert found.s3 is not None
    assert found.s3.path_style is meant


def test_secrets_are_in_no_text(tmp_path: Path) -> None:
    found = settings(tmp_path, S3_BUCKET="runs", MONGODB_URI="mongodb://ann:hidden@db/ml_dash", **KEYS)
    assert found.mongodb_uri == "mongodb://ann:hidden@db/ml_dash"
    text = f"{found!r} {found} {found.s3!r}"
    assert SECRET not in text
    assert "AKIAEXAMPLE" not in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"S3_ENDPOINT": "http://x:1"}, "S3_ENDPOINT is set, and S3_BUCKET is not"),
        (KEYS, "S3_ACCESS_KEY is set, and S3_BUCKET is not"),
        ({"S3_PUBLIC_URL": "http://x:1"}, "S3_PUBLIC_URL is set, and S3_BUCKET is not"),
        ({"S3_BUCKET": "runs", "S3_ACCESS_KEY": "A"}, "S3_ACCESS_KEY is set, and S3_SECRET_KEY is not"),
        ({"S3_BUCKET": "runs", "S3_SECRET_KEY": SECRET}, "S3_SECRET_KEY is set, and S3_ACCESS_KEY is not"),
        ({"S3_BUCKET": "a/b"}, "S3_BUCKET is 'a/b'"),
        ({"S3_BUCKET": "ab"}, "S3_BUCKET is 'ab'"),
        ({"S3_BUCKET": "runs", "S3_REGION": "x y"}, "S3_REGION is 'x y'"),
        ({"S3_BUCKET": "runs", "S3_FORCE_PATH_STYLE": "maybe"}, "S3_FORCE_PATH_STYLE is 'maybe'"),
        ({"S3_BUCKET": "runs", "S3_ENDPOINT": "minio:9000"}, "S3_ENDPOINT is not the address of a service"),
        ({"S3_BUCKET": "runs", "S3_ENDPOINT": f"http://a:{SECRET}@x"}, "S3_ENDPOINT is not the address of a service"),
        ({"S3_BUCKET": "runs", "S3_PUBLIC_URL": "http://x/runs"}, "S3_PUBLIC_URL is not the address of a service"),
        ({"MONGODB_URI": f"postgres://a:{SECRET}@db"}, "MONGODB_URI is not the address of a MongoDB server"),
        ({"MONGODB_URI": "mongodb://"}, "MONGODB_URI is not the address of a MongoDB server"),
    ],
)
def test_what_is_half_given_or_wrong_is_told(tmp_path: Path, environment: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        settings(tmp_path, **environment)
    assert told in str(refused.value)
    assert refused.value.hint
    assert SECRET not in str(refused.value)
