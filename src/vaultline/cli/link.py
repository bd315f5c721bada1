"""``vaultline link``: measure the link between two hosts, for the cluster file."""

from __future__ import annotations

from typing import Annotated

import typer

from vaultline.bench.links import measure_link, serve_once
from vaultline.cli.common import JsonFlag, announce, print_json, results
from vaultline.core.errors import InputError
from vaultline.core.units import format_ms, format_rate
from vaultline.transport.sockets import Address

AddressArgument = Annotated[str, typer.Argument(help="tcp:HOST:PORT of the serving host.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Measure the link between two hosts: `serve` on one, then `measure` on the other.",
        epilog="Example: vaultline link serve tcp:0.0.0.0:7070",
    )
    group.command("serve", epilog="Example: vaultline link serve tcp:0.0.0.0:7070")(serve)
    example = "Example: vaultline link measure tcp:10.0.0.5:7070 --source edge-box --target cloud"
    group.command("measure", epilog=example)(measure)
    app.add_typer(group, name="link")


def serve(
    address: AddressArgument,
    wait: Annotated[
        float, typer.Option(min=0.1, max=86400.0, help="Seconds to wait for the client.")
    ] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Let one client measure the link to this host, then end.

    The port is open to whoever reaches it, for one connection, at most 1 GiB and five minutes.
    Only noise is sent.
    """
    serve_once(_tcp(address), timeout_s=wait, on_listening=_say_where)
    if as_json:
        print_json({"served": True})
    else:
        results().print("measured by one client")


def measure(
    address: AddressArgument,
    source: Annotated[str, typer.Option(help="This host's name in the cluster file.")] = "here",
    target: Annotated[str, typer.Option(help="The serving host's name there.")] = "there",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=30.0, help="How long a transfer should take.")
    ] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Measure the link to a host that serves, both ways, and print its line for `links:`."""
    found = measure_link(_tcp(address), wanted_s=seconds)
    entry = found.entry(source, target)
    if as_json:
        print_json({"link": found, "entry": entry})
        return
    console = results()
    console.print(f"there {format_rate(found.bytes_per_s)}, back ", end="")
    console.print(f"{format_rate(found.back_bytes_per_s)}, latency {format_ms(found.latency_s)}")
    console.print(f"  {entry}", soft_wrap=True, markup=False)


def _say_where(address: Address) -> None:
    announce(f"listening on {address}")


def _tcp(text: str) -> Address:
    address = Address.parse(text)
    if address.kind != "tcp":
        raise InputError(
            "a link between hosts is measured over TCP", got=text, expected="tcp:HOST:PORT"
        )
    return address
