"""``python -m vaultline.testing.hostile_host``: a server's host that has turned against its owner.

What it does is named by ``VAULTLINE_HOSTILE``, which only this module reads, as SERVER:DEED.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from vaultline.core.serving import HostCommand, RunCommand
from vaultline.host import server
from vaultline.sched.wire import (
    AnsweredMessage,
    DrainedMessage,
    HostMessage,
    LaunchServer,
    RefusedRequestMessage,
    ReportedMessage,
)

VARIABLE = "VAULTLINE_HOSTILE"
#: After so many honest answers.
_HONEST = 5
#: Nobody has been sent a request of this number.
_UNSENT = 1 << 40


class HostileHost(server.ServerHost):
    """Honest at first."""

    def __init__(self, launch: LaunchServer, **ends: int) -> None:
        super().__init__(launch, **ends)
        name, _, deed = os.environ.get(VARIABLE, "").partition(":")
        self._deed = deed if name == launch.facts.name else ""
        self._answers = 0
        self._kept: tuple[AnsweredMessage, Sequence[Any]] | None = None

    def _to_gateway(self, message: HostMessage, sealed: Any) -> None:
        self._answers += isinstance(message, AnsweredMessage)
        if not self._deed or self._answers <= _HONEST:
            super()._to_gateway(message, sealed)
        elif isinstance(message, AnsweredMessage):
            self._answer_badly(message, sealed)
        elif isinstance(message, ReportedMessage) and self._deed == "reports of another":
            report = replace(message.report, server="somebody")
            super()._to_gateway(replace(message, report=report), ())
        elif self._deed != "is silent":
            super()._to_gateway(message, sealed)

    def _answer_badly(self, message: AnsweredMessage, sealed: Sequence[Any]) -> None:
        match self._deed:
            case "alters an answer":
                sealed[0][-1] ^= 1
                super()._to_gateway(message, sealed)
            case "swaps answers":
                if self._kept is None:
                    self._kept = message, sealed
                    return
                super()._to_gateway(self._kept[0], sealed)
                super()._to_gateway(message, self._kept[1])
                self._kept = None
            case "answers twice":
                super()._to_gateway(message, sealed)
                super()._to_gateway(message, sealed)
            case "answers what it was not asked":
                super()._to_gateway(AnsweredMessage(number=_UNSENT), sealed)
            case "refuses twice":
                refused = RefusedRequestMessage(number=message.number, reason="no")
                super()._to_gateway(refused, ())
                super()._to_gateway(refused, ())
            case "claims to be drained":
                super()._to_gateway(DrainedMessage(), ())
            case "drops answers" | "is silent":
                return
            case _:
                super()._to_gateway(message, sealed)

    def _to_worker(self, command: HostCommand, sealed: Any) -> None:
        if isinstance(command, RunCommand) and command.group == 0 and sealed:
            if self._deed == "alters a request":
                sealed[0][-1] ^= 1
            elif self._deed == "swaps requests" and len(sealed) > 1:
                sealed = [sealed[1], sealed[0], *sealed[2:]]
        super()._to_worker(command, sealed)


def main() -> None:
    """As the real one."""
    server.ServerHost = HostileHost  # type: ignore[misc]
    server.main()


if __name__ == "__main__":
    main()
