"""A coordinator's door over real TLS without a SuperLink behind it, and a node that greets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from manyeyes.errors import ManyeyesError
from manyeyes.federation.admission import Members
from manyeyes.federation.door import Door, open_door
from manyeyes.federation.hello import Greeter, Work
from manyeyes.federation.keys import AUTHORITY, NODE_PUBLIC, make_authority, make_node_key, read_public_key
from manyeyes.federation.presence import Presence
from manyeyes.web.serving import listen

LONG_AGO = datetime.now(UTC) - timedelta(days=5000)


class Entrance:
    """A coordinator's folder and its door, and a node "A" that was admitted."""

    def __init__(self, folder: Path) -> None:
        self.state, self.node = folder / "coordinator", folder / "nodes" / "A"
        make_authority(self.state, ["localhost"])
        make_node_key(self.node, "A")
        self.members = Members(self.state)
        self.members.admit("A", read_public_key(self.node / NODE_PUBLIC))
        self.presence = Presence()
        self.port = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[Door]:
        door = Door(self.members, "https://localhost:1", self.state / AUTHORITY, presence=self.presence)
        with (
            listen("127.0.0.1", 0, key="port") as listener,
            open_door(door, self.state, listener),
        ):
            self.port = int(listener.getsockname()[1])
            yield door

    def greeter(
        self,
        node_id: str = "A",
        *,
        folder: Path | None = None,
        host: str = "localhost",
        port: int | None = None,
        work: Work | None = None,
    ) -> Greeter:
        return Greeter(node_id, host, port or self.port, self.state / AUTHORITY, folder or self.node, work)

    def complaint(self, **greeter: Any) -> str:
        """What is said when it greets."""
        try:
            self.greeter(**greeter).greet()
        except ManyeyesError as error:
            said = str(error)
            assert "\n" not in said
            assert "PRIVATE" not in said
            return said
        raise AssertionError("it was let in")
