"""The files of deploy/ and .github/: checked by the tools that read them, where they are here, and by our settings."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings, parse
from tests.clerk import FakeClerk
from tests.conftest import PRODUCTS, Database, Serve, Shop, base_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
IMPORTER_ADDRESS = "52.57.0.11"


def tool(name: str) -> str:
    """A program of the virtual environment or of the machine; the test is skipped, and says so, where it is neither."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def passes(*command: str | Path, folder: Path = ROOT) -> str:
    """What a checker printed, which must find nothing."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def documents(path: Path) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="the extra deploy is not installed")
    return list(yaml.safe_load_all(path.read_text()))


def settings_of(text: str, environment: set[str]) -> Settings:
    """A feed.toml read as `serve` reads it, with only the variables that its deployment sets."""
    values = {"DATABASE_URL": "postgresql://shop@postgres/shop", "CLERK_PUBLIC_KEY": "key"}
    return parse(text, {name: values[name] for name in environment & set(values)})


# The image


def test_the_dockerfile_passes_its_linter() -> None:
    passes(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_image_copies_what_there_is_and_nothing_else_reaches_the_builder() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    allowed = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert set(allowed) == names


def test_the_image_runs_as_nobody_in_particular() -> None:
    last = (DEPLOY / "Dockerfile").read_text().rpartition("FROM ")[2]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last


@pytest.mark.slow
def test_the_image_builds_and_starts(tmp_path: Path) -> None:
    docker = tool("docker")
    if subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker daemon answers here")
    passes(docker, "build", "--file", DEPLOY / "Dockerfile", "--tag", "clerk-feed-test", ".")
    assert "clerk-feed, version" in passes(docker, "run", "--rm", "--read-only", "clerk-feed-test", "--version")


_CONFINED = """
import ctypes, os, sys
refused = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE: no memory both writable and executable
print("confined" if not refused else "an older kernel", file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_service_needs_no_rights_and_no_more_than_a_tmpfs_to_write_to(
    serve: Serve, database: Database, clerk: FakeClerk, tmp_path: Path
) -> None:
    """As the image and the unit run it: no capability, a read-only root but for a tmpfs, no new executable memory.

    But for the right to pass the folder of the test's PostgreSQL, which belongs to another user.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can make a root filesystem read-only")
    unshare, setpriv = tool("unshare"), tool("setpriv")
    read_only = 'mount -t tmpfs tmpfs /var/tmp && mount -o remount,bind,ro / && exec "$@"'
    if subprocess.run(
        [unshare, "-m", "sh", "-c", read_only, "sh", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody make a root filesystem read-only")
    database.execute("create schema shop;" + PRODUCTS.replace("{s}", "shop") + ";insert into shop.products values (1)")
    rights = ["--bounding-set=-all,+dac_override", "--inh-caps=-all", "--no-new-privs"]
    program = [unshare, "-m", "sh", "-c", read_only, "sh", setpriv, *rights]
    program += [sys.executable, "-B", "-c", _CONFINED, sys.executable, "-B", "-m", "app"]
    config = base_config(database.dsn, clerk.verify_url) + '[stores.shop]\npublic_key = "key-shop"\n'
    service = serve(config, program=program)
    assert "Read-only" not in service.log.read_text()
    assert [item["id"] for item in service.get("/shop/products").lines] == [1]
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    assert re.search(r"^CapBnd:\s+0+2$", status, re.MULTILINE), status
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), status


def test_without_any_place_to_write_to_the_service_says_so(tmp_path: Path) -> None:
    (tmp_path / "feed.toml").write_text('[database]\ndsn = "postgresql://nowhere/"\n[stores.shop]\npublic_key = "k"\n')
    command = [sys.executable, "-c", _NOWHERE, "serve", "--config", str(tmp_path / "feed.toml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("Error: The metrics need a folder for temporary files")
    assert "tmpfs" in run.stderr


_NOWHERE = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc"]
from app.cli import main
main()
"""


# Compose


def test_compose_yaml_fits_the_compose_specification() -> None:
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_compose_yaml_is_understood_by_docker() -> None:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("Docker's compose plugin is not installed")
    passes(
        "env", "POSTGRES_PASSWORD=p", "CLERK_PUBLIC_KEY=k", docker, "compose", "-f", DEPLOY / "compose.yaml", "config"
    )


def test_the_compose_container_is_given_all_that_its_settings_read() -> None:
    [compose] = documents(DEPLOY / "compose.yaml")
    service = compose["services"]["clerk-feed"]
    settings = settings_of((DEPLOY / "feed.toml").read_text(), set(service["environment"]))
    [subnet] = compose["networks"]["feeds"]["ipam"]["config"]
    assert settings.access.trusted_proxies == (subnet["subnet"],)
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert float(service["stop_grace_period"].rstrip("s")) > settings.server.shutdown_timeout.seconds
    published = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert service["ports"][0].endswith(settings.server.bind[0].rpartition(":")[2])


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as systemd would load it, but for the program, which is not installed in /opt here."""
    text = (DEPLOY / "systemd" / "clerk-feed.service").read_text()
    assert text.count("ExecStart=/opt/clerk-feed/bin/clerk-feed ") == 1
    path = tmp_path / "clerk-feed.service"
    path.write_text(text.replace("ExecStart=/opt/clerk-feed/bin/clerk-feed ", f"ExecStart={sys.executable} "))
    return path


def test_systemd_understands_every_line_of_the_units(unit: Path) -> None:
    listener = unit.with_suffix(".socket")
    listener.write_text((DEPLOY / "systemd" / "clerk-feed.socket").read_text())
    assert not passes(tool("systemd-analyze"), "verify", unit, listener).strip()


def test_the_socket_unit_listens_where_the_service_would() -> None:
    text = (DEPLOY / "systemd" / "clerk-feed.socket").read_text()
    assert re.findall(r"^ListenStream=(.+)$", text, re.MULTILINE) == list(Settings().server.bind)


def test_under_systemd_the_unit_is_told_when_it_is_ready_and_reloaded(
    unit: Path, serve: Serve, database: Database, clerk: FakeClerk, tmp_path: Path
) -> None:
    text = unit.read_text()
    assert "Type=notify\n" in text
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in text
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(60)
        config = base_config(database.dsn, clerk.verify_url) + '[stores.shop]\npublic_key = "key-shop"\n'
        service = serve(config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert told.recv(100) == b"READY=1"
        service.process.send_signal(signal.SIGHUP)
        assert told.recv(100).startswith(b"RELOADING=1")
        assert told.recv(100) == b"READY=1"


def test_systemd_finds_the_unit_hardened(unit: Path) -> None:
    said = passes(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", unit)
    found = re.search(r"Overall exposure level for clerk-feed.service: ([0-9.]+)", said)
    assert found
    assert float(found[1]) < 2


def test_the_unit_leaves_answers_their_time() -> None:
    text = (DEPLOY / "systemd" / "clerk-feed.service").read_text()
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert float(seconds) > Settings().server.shutdown_timeout.seconds


# Kubernetes


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_kubernetes_accepts_the_manifests(version: str) -> None:
    program = tool("kubernetes-validate")
    said = passes(program, "--strict", "-k", version, DEPLOY / "kubernetes" / "clerk-feed.yaml")
    assert said.count("passed") == len(documents(DEPLOY / "kubernetes" / "clerk-feed.yaml"))


def test_the_pods_settings_probes_and_grace_fit_the_service(shop: Shop) -> None:
    manifests = {each["kind"]: each for each in documents(DEPLOY / "kubernetes" / "clerk-feed.yaml")}
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    settings = settings_of(manifests["ConfigMap"]["data"]["feed.toml"], {"DATABASE_URL", "CLERK_PUBLIC_KEY"})
    [port] = container["ports"]
    assert settings.server.bind == (f"0.0.0.0:{port['containerPort']}",)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        # The shared service names feeds that have no view, so it lives without being ready.
        answer = shop.service.get(container[probe]["httpGet"]["path"], token=None)
        assert answer.json["status"] == ("ok" if answer.status == 200 else "unavailable")
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + settings.server.shutdown_timeout.seconds
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


# Cloudflare


def test_terraform_finds_its_files_laid_out() -> None:
    passes(tool("terraform"), f"-chdir={DEPLOY / 'cloudflare'}", "fmt", "-check", "-diff")


@pytest.mark.slow
def test_terraform_finds_its_files_valid(tmp_path: Path) -> None:
    terraform = tool("terraform")
    folder = shutil.copytree(DEPLOY / "cloudflare", tmp_path / "cloudflare")
    init = [terraform, f"-chdir={folder}", "init", "-backend=false", "-input=false"]
    if subprocess.run(init, capture_output=True, check=False).returncode:
        pytest.skip("Cloudflare's provider can't be had here")
    passes(terraform, f"-chdir={folder}", "validate")


def resources() -> dict[str, dict[str, Any]]:
    """The resources of main.tf by kind and name."""
    hcl2 = pytest.importorskip("hcl2", reason="the extra deploy is not installed")
    options = hcl2.SerializationOptions(strip_string_quotes=True)
    with (DEPLOY / "cloudflare" / "main.tf").open() as file:
        found = hcl2.load(file, serialization_options=options)
    return {
        f"{kind}.{name}": body
        for each in found["resource"]
        for kind, named in each.items()
        for name, body in named.items()
    }


def rule(name: str) -> dict[str, Any]:
    [only] = resources()[f"cloudflare_ruleset.{name}"]["rules"]
    found: dict[str, Any] = only
    return found


def test_cloudflare_exempts_the_importer_and_nobody_else() -> None:
    skip = rule("firewall")
    assert skip["action"] == "skip"
    assert skip["expression"] == "${local.feeds} and ${local.importer}"
    assert {"http_ratelimit", "http_request_sbfm", "http_request_firewall_managed"} <= set(
        skip["action_parameters"]["phases"]
    )
    assert {"securityLevel", "bic"} <= set(skip["action_parameters"]["products"])
    assert f'default     = ["{IMPORTER_ADDRESS}"]' in (DEPLOY / "cloudflare" / "variables.tf").read_text()


def test_cloudflare_slows_everyone_else() -> None:
    limit = rule("rate_limit")
    assert limit["expression"] == "${local.feeds} and not ${local.importer}"
    assert limit["action"] == "block"


def test_cloudflare_caches_no_feed_and_asks_the_origin_with_its_own_certificate() -> None:
    cache = rule("cache")
    assert cache["expression"] == "${local.feeds}"
    assert cache["action_parameters"]["cache"] is False
    assert rule("settings")["action_parameters"]["ssl"] == "strict"
    assert resources()["cloudflare_authenticated_origin_pulls_settings.feeds"]["enabled"] is True


def test_the_tunnel_keeps_to_http_1_and_lets_nothing_else_in() -> None:
    [tunnel] = documents(DEPLOY / "cloudflared" / "config.yml")
    feeds, rest = tunnel["ingress"]
    assert feeds["service"] == f"http://{Settings().server.bind[0]}"
    assert feeds["originRequest"]["http2Origin"] is False
    assert feeds["originRequest"]["disableChunkedEncoding"] is False
    assert rest == {"service": "http_status:404"}


def test_cloudflared_understands_its_file() -> None:
    passes(tool("cloudflared"), "tunnel", "--config", DEPLOY / "cloudflared" / "config.yml", "ingress", "validate")


# GitHub


def test_the_workflows_fit_their_schema() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *workflows)


def test_the_workflows_pass_their_security_audit() -> None:
    passes(tool("zizmor"), "--offline", "--quiet", ROOT / ".github" / "workflows")


def test_the_workflows_name_targets_and_paths_that_exist() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    makefile = (ROOT / "Makefile").read_text()
    for targets in re.findall(r"run: make (.+)$", text, re.MULTILINE):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"--file (\S+)", text):
        assert (ROOT / path).exists()
    assert json.dumps(documents(ROOT / ".github" / "workflows" / "publish.yml")).count("id-token") == 1
