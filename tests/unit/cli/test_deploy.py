"""Units, image recipes and Kubernetes manifests: what they say, by their own languages' parsers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_kinds import KINDS
from msgspec import ValidationError, convert

from vaultline.cli import main as cli

IMAGE = "registry.example/vaultline/worker@sha256:" + "ab" * 32
SERVICE = "vaultline-worker@.service"


def deploy(folder: Path, *arguments: str) -> Path:
    out = folder / "out"
    assert cli.main(["deploy", *arguments, "--out", str(out)]) == 0
    return out


def unit(path: Path) -> dict[str, list[str]]:
    """``Section.Key`` -> values, in order; a unit file may repeat keys."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_unit_runs_a_worker_on_a_connection_and_gives_up_the_rest(
    tmp_path: Path, kind: str
) -> None:
    out = deploy(tmp_path, "systemd", "--kind", kind)
    service = unit(out / "mkosi.extra/etc/systemd/system" / SERVICE)
    socket = unit(out / "mkosi.extra/etc/systemd/system/vaultline-worker.socket")
    assert socket["Socket.ListenStream"] == ["vsock::7000"]
    assert socket["Socket.Accept"] == ["yes"]
    assert service["Service.ExecStart"] == ["/usr/bin/python3 -S -P -B -m vaultline.enclave"]
    assert service["Service.StandardInput"] == service["Service.StandardOutput"] == ["socket"]
    assert service["Unit.ConditionSecurity"] == ["cvm"]
    assert service["Service.CapabilityBoundingSet"] == [""]
    assert service["Service.ReadWritePaths"] == ["/sys/kernel/config/tsm/report"]
    for key, value in {
        "NoNewPrivileges": "yes",
        "LimitCORE": "0",
        "MemorySwapMax": "0",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateDevices": "yes",
        "RestrictAddressFamilies": "AF_INET AF_INET6",
        "RestrictNamespaces": "yes",
        "RestrictSUIDSGID": "yes",
        "SystemCallArchitectures": "native",
    }.items():
        assert service[f"Service.{key}"] == [value]
    assert not any("$" in value for values in service.values() for value in values)


def test_a_unit_for_what_is_installed_here_runs_it_from_here(tmp_path: Path) -> None:
    out = deploy(tmp_path, "systemd", "--kind", "tdx", "--here", "--listen", "127.0.0.1:7000")
    service = unit(out / SERVICE)
    python = service["Service.ExecStart"][0].split()[0]
    path = service["Service.Environment"][0].removeprefix("PYTHONPATH=")
    code = "import vaultline.enclave.__main__, vaultline.enclave.tsm_quotes"
    command = [python, "-S", "-P", "-B", "-c", code]
    subprocess.run(command, env={"PYTHONPATH": path}, timeout=60, check=True)
    private = any(place.startswith(("/root", "/home")) for place in (python, *path.split(":")))
    assert service["Service.ProtectHome"] == ["read-only" if private else "yes"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_itself_takes_the_units(tmp_path: Path) -> None:
    out = deploy(tmp_path, "systemd", "--kind", "tdx", "--here")
    command = ["systemd-analyze", "verify", "--man=no", "--generators=no"]
    done = subprocess.run(
        [*command, *(str(out / name) for name in (SERVICE, "vaultline-worker.socket"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "vaultline" in line]
    assert not complaints, complaints


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_an_image_has_pinned_packages_and_no_way_in(tmp_path: Path, kind: str) -> None:
    out = deploy(tmp_path, "systemd", "--kind", kind)
    recipe = (out / "mkosi.conf").read_text()
    script = out / "mkosi.postinst.chroot"
    for word in (
        "lockdown=confidentiality",
        "systemd.import_credentials=no",
        "systemd.gpt_auto=no",
        "systemd.swap=no",
        "Autologin=no",
    ):
        assert word in recipe.split()
    assert "ssh" not in recipe.lower().replace("no ssh", "")
    assert "--require-hashes" in script.read_text()
    assert "passwd --lock root" in script.read_text()
    assert {"tdx": "tdx_guest", "snp": "sev-guest"}[kind] in script.read_text()
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(script)], timeout=10, check=True)


def test_an_image_is_one_file_that_is_measured_whole_and_reads_vaults_besides(
    tmp_path: Path,
) -> None:
    out = deploy(tmp_path, "systemd", "--kind", "snp")
    recipe = unit(out / "mkosi.conf")
    # A disk image would be the host's to exchange: SNP's launch digest says nothing of a disk.
    assert recipe["Output.Format"] == ["uki"]
    assert not {"Content.Bootloader", "Content.RootPassword"} & set(recipe)
    # Debian's images have no apt; mkosi removes packages after the scripts.
    assert "apt" not in (out / "mkosi.postinst.chroot").read_text()
    assert recipe["Content.RemovePackages"] == ["python3-pip"]
    extra = out / "mkosi.extra" / "etc"
    mount = unit(extra / "systemd/system/var-lib-vaultline-vaults.mount")
    assert mount["Mount.Where"] == ["/var/lib/vaultline/vaults"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount["Mount.Options"][0].split(","))
    network = unit(extra / "systemd/network/80-worker.network")
    assert network["Network.DHCP"] == ["yes"]
    assert all(v == ["no"] for k, v in network.items() if k.startswith("DHCPv"))
    assert "kernel.sysrq = 0" in (extra / "sysctl.d/80-worker.conf").read_text()
    assert "var-lib-vaultline-vaults.mount" in (out / "mkosi.postinst.chroot").read_text()


@pytest.mark.parametrize(
    ("listen", "kept"), [("vsock::7000", "no"), ("10.0.0.5:7000", "yes"), ("7000", "yes")]
)
def test_a_launcher_that_died_without_a_word_holds_no_worker_for_ever(
    tmp_path: Path, listen: str, kept: str
) -> None:
    out = deploy(tmp_path, "systemd", "--kind", "tdx", "--here", "--listen", listen)
    socket = unit(out / "vaultline-worker.socket")
    assert socket["Socket.KeepAlive"] == [kept]  # a VM's own socket breaks with its host


@pytest.mark.parametrize("listen", ["7000\nExecStartPre=/bin/sh", "a b", "$HOME", "%h"])
def test_a_value_cannot_add_a_line_or_a_meaning(tmp_path: Path, listen: str) -> None:
    arguments = ["deploy", "systemd", "--kind", "tdx", "--out", str(tmp_path / "o")]
    assert cli.main([*arguments, "--listen", listen]) == 2
    assert not (tmp_path / "o").exists()


def kubernetes(folder: Path, kind: str) -> dict[str, Any]:
    arguments = ("kubernetes", "--kind", kind, "--image", IMAGE, "--owner", "10.1.2.0/24")
    out = deploy(folder, *arguments)
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(out.iterdir())}


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_manifests_satisfy_our_schemas_of_kubernetes(tmp_path: Path, kind: str) -> None:
    documents = kubernetes(tmp_path, kind)
    assert set(documents) == {"worker", "service", "networkpolicy"}
    for document in documents.values():
        schema = KINDS[document["apiVersion"], document["kind"]]
        convert(document, schema)
        for wrong in ({"surprise": 1}, {"selector": 7, "podSelector": 7}):
            with pytest.raises(ValidationError):
                convert(document | {"spec": document["spec"] | wrong}, schema)


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_manifests_satisfy_the_schemas_that_kubernetes_publishes(tmp_path: Path, kind: str) -> None:
    """With `pip install kubernetes-validate`: over 100 MiB, and so no part of ``make env``."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    for document in kubernetes(tmp_path, kind).values():
        for version in ("1.29", validate.latest_version()):
            validate.validate(document, version, strict=True)


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_a_pod_has_no_token_no_capabilities_and_nothing_of_its_node(
    tmp_path: Path, kind: str
) -> None:
    spec = kubernetes(tmp_path, kind)["worker"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert not any(spec[name] for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert container["image"] == IMAGE
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"][0]["readOnly"] is True
    assert "serviceAccountName" not in spec
    node_paths = [each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each]
    # In a guest of its own: Kata takes /sys from there.
    assert node_paths == ([] if kind == "sgx" else ["/sys/kernel/config"])
    assert spec["securityContext"].get("runAsNonRoot", False) == (kind == "sgx")


@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
def test_a_pod_starts_one_worker_after_the_other_and_not_two_at_a_time(
    tmp_path: Path, kind: str
) -> None:
    """Without ``fork`` each run ends the container, which Kubernetes restarts later and later."""
    spec = kubernetes(tmp_path, kind)["worker"]["spec"]["template"]["spec"]
    program, listen, execute = spec["containers"][0]["command"]
    assert (program, listen.split(",")[0]) == ("socat", "TCP-LISTEN:7000")
    assert {"fork", "max-children=1", "keepalive"} <= set(listen.split(","))
    assert execute.startswith("EXEC:")


def test_an_enclave_gets_protected_memory_and_a_vm_its_runtime_class(tmp_path: Path) -> None:
    for kind, runtime in (("tdx", "kata-qemu-tdx"), ("snp", "kata-qemu-snp"), ("sgx", None)):
        folder = tmp_path / kind
        worker = kubernetes(folder, kind)["worker"]["spec"]["template"]
        (container,) = worker["spec"]["containers"]
        assert worker["spec"].get("runtimeClassName") == runtime
        limits = container["resources"]["limits"]
        assert limits.get("sgx.intel.com/epc") == ("2Gi" if kind == "sgx" else None)
        annotations = worker["metadata"].get("annotations", {})
        assert ("sgx.intel.com/quote-provider" in annotations) == (kind == "sgx")


def test_the_network_policy_lets_in_owner_stages_and_launcher_and_no_one_else(
    tmp_path: Path,
) -> None:
    made = kubernetes(tmp_path, "sgx")
    spec = made["networkpolicy"]["spec"]
    labels = made["worker"]["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    work, launch = (rule["ports"] for rule in spec["ingress"])
    assert launch == [{"protocol": "TCP", "port": 7000}]
    (work,) = work
    # Workers listen on ports that the kernel chooses, and it chooses from just those.
    pod = made["worker"]["spec"]["template"]["spec"]["securityContext"]
    assert pod["sysctls"] == [
        {"name": "net.ipv4.ip_local_port_range", "value": f"{work['port']} {work['endPort']}"}
    ]
    assert not work["port"] <= 7000 <= work["endPort"]
    sources = [source for rule in spec["ingress"] for source in rule["from"]]
    assert all(source for source in sources)  # an empty one would be everybody
    assert {"ipBlock": {"cidr": "10.1.2.0/24"}} in sources
    assert all(rule["to"] for rule in spec["egress"])
    listening = made["worker"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    offered = {port["targetPort"] for port in made["service"]["spec"]["ports"]}
    assert offered == {port["containerPort"] for port in listening}


@pytest.mark.parametrize(
    "wrong",
    [
        ("--image", "vaultline/worker:latest"),
        ("--image", IMAGE + "\n  evil: 1"),
        ("--owner", "everyone"),
        ("--name", "Worker"),
        ("--name", "a\nb"),
        ("--namespace", "a: b"),
        ("--epc", "93MB"),
        ("--memory", "0"),
        ("--cpu", "all"),
    ],
)
def test_what_kubernetes_would_not_take_or_take_otherwise_is_refused(
    tmp_path: Path, wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--kind": "sgx", "--image": IMAGE, "--owner": "10.0.0.0/8", "--json": ""}
    given |= dict([wrong]) | {"--out": str(tmp_path / "o")}
    arguments = [text for pair in given.items() for text in pair if text]
    assert cli.main(["deploy", "kubernetes", *arguments]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "InputError"
    assert not (tmp_path / "o").exists()
