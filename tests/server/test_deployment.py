"""docs/deployment.md: its files parse and name only what there is; its nginx configuration works before a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ml_dash import Experiment, RemoteClient
from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import MAX_BATCH_BYTES
from ml_dash.errors import Unreachable
from ml_dash.server.engine.services import open_tokens
from ml_dash.server.http.app import ROUTES
from ml_dash.server.settings import VARIABLES, ServerSettings
from ml_dash.sync.login import development_token
from tests.running import Server, uploader
from tests.server.conftest import Web

PAGE: Final = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
# Of other programs in the compose file.
FOREIGN: Final = {"ROOT_ACCESS_KEY", "ROOT_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                  "AWS_DEFAULT_REGION"}  # fmt: skip


def blocks(kind: str) -> list[str]:
    return re.findall(rf"(?ms)^```{kind}\n(.*?)^```$", PAGE)


def documents() -> list[Any]:
    return [document for block in blocks("yaml") for document in yaml.safe_load_all(block)]


def compose() -> dict[str, Any]:
    (found,) = (document for document in documents() if "services" in document)
    assert isinstance(found, dict)
    return found


def manifests() -> dict[str, Any]:
    return {document["kind"]: document for document in documents() if "kind" in document}


# -- names ------------------------------------------------------------------------------------------------------------


def test_every_variable_on_the_page_is_a_setting() -> None:
    services = compose()["services"].values()
    named = {name for service in services for name in service.get("environment", {})} - FOREIGN
    named |= {name for block in blocks("yaml") for name in re.findall(r"\$\{(\w+):\?\}", block)}
    named |= {name for block in blocks("ini") for name in re.findall(r"^([A-Z][A-Z0-9_]+)=", block, re.MULTILINE)}
    named |= set(manifests()["ConfigMap"]["data"])
    container = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    named |= {entry["name"] for entry in container["env"]}
    named |= {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"]}
    named |= set(re.findall(r"`((?:S3|LIMIT|MONGODB|JWT|MAX)_[A-Z_]+[A-Z])`", PAGE))
    assert {"MONGODB_URI", "S3_BUCKET", "JWT_SECRET", "PORT"} <= named
    assert named - VARIABLES == set()


def test_every_setting_is_on_the_page_of_settings() -> None:
    """And the code reads no other ones."""
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    source = (Path(__file__).parents[2] / "ml_dash" / "server" / "settings.py").read_text(encoding="utf-8")
    read = set(re.findall(r'environ(?:ment)?(?:\.get\(|, )"([A-Z][A-Z0-9_]+)"', source)) - {"LIMIT", "LIMIT_TOKEN"}
    assert "JWT_SECRET" in read
    assert read - VARIABLES == set()
    stores = {name for name in VARIABLES if name.startswith(("S3_", "MONGODB_"))}
    assert [name for name in sorted(VARIABLES - stores) if f"`{name}`" not in page] == []


def test_the_compose_file_refers_to_what_it_has() -> None:
    file = compose()
    services = file["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in file["volumes"], volume
    app = services["app1"]
    assert services["app2"] == app
    assert set(app["depends_on"]) == {"mongo", "bucket"}
    health = next(part for part in app["healthcheck"]["test"] if "http://" in part)
    assert f":{app['environment']['PORT']}/health" in health
    compile(health, "healthcheck", "exec")
    (config,) = blocks("nginx")
    assert re.findall(r"server (app\d):(\d+) ", config) == [("app1", "3000"), ("app2", "3000")]
    assert app["environment"]["PORT"] == "3000"
    # Only the proxy can be reached from outside.
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]


def test_the_manifests_refer_to_each_other() -> None:
    found = manifests()
    assert set(found) == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "Ingress"}
    spec = found["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    assert labels == found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < spec["replicas"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": found["ConfigMap"]["metadata"]["name"]}}]
    assert {int(found["ConfigMap"]["data"]["PORT"])} == {port["containerPort"] for port in container["ports"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    paths = {route.path for route in ROUTES}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    # No secret stands in a manifest.
    assert not {"MONGODB_URI", "S3_SECRET_KEY", "S3_ACCESS_KEY", "JWT_SECRET"} & set(found["ConfigMap"]["data"])
    (rule,) = found["Ingress"]["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == found["Service"]["metadata"]["name"]


def test_sizes_on_the_page_are_those_of_the_server() -> None:
    (config,) = blocks("nginx")
    small, large = re.findall(r"client_max_body_size (\d+)m;", config)
    assert MAX_BATCH_BYTES < int(small) << 20 <= 2 * MAX_BATCH_BYTES
    # The file, and a megabyte for the form around it.
    assert (int(large) << 20) == ServerSettings.max_file_size + (1 << 20)
    annotations = manifests()["Ingress"]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{large}m"


def test_the_drop_in_makes_a_unit_that_systemd_takes(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    (drop_in,) = re.findall(r"(?ms)<!-- drop-in -->\n```ini\n(.*?)^```$", PAGE)
    unit = (Path(__file__).parents[2] / "systemd" / "ml-dash-server.service").read_text(encoding="utf-8")
    program = tmp_path / "ml-dash"
    program.symlink_to("/bin/true")
    folder = tmp_path / "ml-dash-server.service.d"
    folder.mkdir()
    (folder / "override.conf").write_text(drop_in.replace("/opt/ml-dash/bin/ml-dash", str(program)), encoding="utf-8")
    (tmp_path / "ml-dash-server.service").write_text(unit, encoding="utf-8")
    command = [analyze, "verify", "--man=no", str(tmp_path / "ml-dash-server.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "ml-dash" in line]) == (0, [])


# -- nginx ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """nginx with the page's configuration before a real server, and a token for it."""

    url: str
    server: Server
    certificate: Path
    token: str
    log: Path

    def web(self) -> Web:
        """Alice, through the proxy."""
        web = Web(self.url, self.token)
        web.session.verify = str(self.certificate)
        return web


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    openssl = shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx or openssl is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    data = folder / "data"
    with open_tokens(ServerSettings(data)) as tokens:
        _, token = tokens.create_token("alice")
    request = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-keyout", "dash.key", "-out", "dash.pem",
    ]  # fmt: skip
    subprocess.run(request, cwd=folder, capture_output=True, timeout=60, check=True)
    server = Server(data).start()
    pid: int | None = None
    try:
        port = _started(nginx, folder, server.url)
        pid = int((folder / "nginx.pid").read_text())
        yield Proxy(f"https://localhost:{port}", server, folder / "dash.pem", token, folder / "access.log")
    finally:
        if pid is not None:
            _end(pid)
        server.end()


def _started(nginx: str, folder: Path, url: str) -> int:
    """Starts it on a port that is free, and returns the port: it listens once the command has returned."""
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as place:
            port = int(place.getsockname()[1])
        path = folder / "nginx.conf"
        path.write_text(_placed(folder, port, url.rpartition("/")[2]), encoding="utf-8")
        command = [nginx, "-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return port
        assert "Address already in use" in done.stderr, done.stderr
    raise AssertionError("no port stayed free")


def _placed(folder: Path, port: int, address: str) -> str:
    """The page's configuration, with places of the test in the place of its own."""
    (config,) = blocks("nginx")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    changes = {
        "worker_processes auto;\n": f"worker_processes 2;\npid {folder}/nginx.pid;\n"
        + ("user root;\n" if os.geteuid() == 0 else ""),
        "worker_connections 8192;": "worker_connections 256;",
        "http {\n": "http {\n" + temporary,
        "app1:3000": address,
        "app2:3000": address,
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/nginx/tls/": f"{folder}/",
        "/var/log/nginx/": f"{folder}/",
    }
    for old, new in changes.items():
        assert old in config, old
        config = config.replace(old, new)
    return config


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "nginx does not end"
        # There is nothing to wait on for a process that is not a child.
        threading.Event().wait(0.02)


def test_a_real_uploader_sends_everything_through_nginx(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.certificate))
    content = os.urandom(12 << 20)
    (tmp_path / "weights.bin").write_bytes(content)
    run = Experiment("through", "p", local_path=tmp_path / "store", remote=proxy.url, api_key=proxy.token)
    with run.open() as experiment:
        for step in range(5000):
            experiment.metric("train/a b").append(value=float(step))
        experiment.log("x" * (3 << 20))
        experiment.file(tmp_path / "weights.bin")
    with uploader():
        deadline = time.monotonic() + 60
        while not experiment.wait_synced(5):
            assert time.monotonic() < deadline
    with RemoteClient(proxy.url, api_key=proxy.token) as client:
        identity = experiment_id("p", "through")
        points = client.points(identity, "train/a b", 0, 10_000)["data"]
        assert [point["data"]["value"] for point in points] == [float(step) for step in range(5000)]
        (file,) = client.files(identity)
        assert b"".join(client.read_file(identity, file["id"])) == content
    assert proxy.token not in proxy.log.read_text(encoding="utf-8")


def test_a_file_in_one_piece_passes_and_another_large_body_is_refused_by_nginx(proxy: Proxy) -> None:
    web = proxy.web()
    with web.session:
        path = f"/experiments/{web.experiment('large')}"
        content = os.urandom(20 << 20)
        record = web.ask("POST", f"{path}/files", files={"file": ("model.bin", content)}).json()
        answer = web.ask("GET", f"{path}/files/{record['id']}/download", 206, headers={"Range": "bytes=5-9"})
        assert answer.content == content[5:10]
        assert web.ask("GET", f"{path}/files/{record['id']}/download").content == content
        refused = web.session.post(f"{proxy.url}{path}/parameters", data=b"x" * (10 << 20), timeout=30)
        assert (refused.status_code, "X-ML-Dash-Protocol" in refused.headers) == (413, False)
        # What the server itself would take, passes.
        parameters = {"data": {"text": "x" * (900 << 10)}}
        web.post(f"{path}/parameters", parameters)


def test_a_live_reader_hears_at_once_through_nginx(proxy: Proxy) -> None:
    web, other = proxy.web(), proxy.web()
    with web.session, other.session:
        path = f"/experiments/{web.experiment('live')}"
        with other.session.get(f"{proxy.url}{path}/events", stream=True, timeout=10) as stream:
            lines = stream.iter_lines(chunk_size=1, decode_unicode=True)
            first = _next_number(lines)
            # Sooner than the next sign of life, which would push a buffered event on.
            web.post(f"{path}/logs", {"logs": [{"message": "one"}]})
            assert _next_number(lines) == first + 1


def _next_number(lines: Iterator[str]) -> int:
    return int(next(json.loads(line[6:])["events"] for line in lines if line.startswith("data: ")))


def _user(client: RemoteClient) -> str | None:
    """Who is logged in; None while there is no answer."""
    try:
        return client.whoami()["userName"]
    except Unreachable:
        return None


def test_a_server_that_is_away_is_one_to_try_again_later(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the development login does not work from behind the proxy, wherever that runs."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.certificate))
    with RemoteClient(proxy.url, api_key=proxy.token) as client:
        client.whoami()
        proxy.server.end()
        with pytest.raises(Unreachable):
            client.whoami()
        proxy.server.start()
        deadline = time.monotonic() + 30
        while (user := _user(client)) is None:
            assert time.monotonic() < deadline
            threading.Event().wait(0.1)
        assert user == "alice"
    stranger = Web(proxy.url, development_token("mallory"))
    stranger.session.verify = str(proxy.certificate)
    with stranger.session:
        stranger.refused("GET", "/whoami", 401, "unauthorised")
