"""``vaultline cluster``: say how a cluster file is understood, or print its schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.files import load_cluster
from vaultline.core.cluster import Cluster
from vaultline.core.cluster_file import cluster_schema
from vaultline.core.serde import canonical_json
from vaultline.core.units import format_bytes, format_ms, format_rate


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="The file that says where stages can run, and what lies between.",
        epilog="Example: vaultline cluster check cluster.yaml",
    )
    group.command("check", epilog="Example: vaultline cluster check cluster.yaml")(check)
    group.command("schema", epilog="Example: vaultline cluster schema > cluster.schema.json")(
        schema
    )
    app.add_typer(group, name="cluster")


def check(
    file: Annotated[Path, typer.Argument(help="The cluster file (YAML).")],
    as_json: JsonFlag = False,
) -> None:
    """Read a cluster file and say how it is understood, with warnings.

    Exit code 2 if it cannot be used; then the line of the mistake is named.
    """
    cluster = load_cluster(file)
    if as_json:
        print_json({**msgspec.structs.asdict(cluster), "warnings": cluster.warnings()})
    else:
        _show(cluster)


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of cluster files, for editors; with --json on one line."""
    if as_json:
        print_json(cluster_schema())
    else:
        sys.stdout.write(schema_text())


def schema_text() -> str:
    """The schema as it is published: indented, keys sorted."""
    return msgspec.json.format(canonical_json(cluster_schema()), indent=2).decode() + "\n"


def _show(cluster: Cluster) -> None:
    console = results()
    hosts = [
        (host.name, host.site or "-", host.cores, format_bytes(host.memory_bytes), seat)
        for host in cluster.hosts
        for seat in ("owner" if host.name == cluster.owner else "",)
    ]
    console.print(table("hosts", ("host", "site", "cores", "memory", ""), hosts))
    devices = [
        (
            device.name if device.count == 1 else f"{device.name} x {device.count}",
            device.host,
            device.kind,
            device.trust,
            format_bytes(device.memory_bytes),
            device.cores,
            device.speed_class or device.kind,
        )
        for device in cluster.devices
    ]
    columns = ("device", "host", "kind", "trust", "memory", "cores", "class")
    console.print(table("\ndevices", columns, devices))
    links = [
        (
            f"{link.source} -> {link.target}",
            format_rate(link.bytes_per_s),
            format_ms(link.latency_s),
        )
        for link in cluster.links
    ]
    if links:
        console.print(table("\nlinks", ("link", "bandwidth", "latency"), links))
    for warning in cluster.warnings():
        console.print(f"[yellow]warning:[/] {escape(warning)}")
