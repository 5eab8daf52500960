"""How a process of ours is said to have ended; that it hears no signals and ends with its parent is in the tests of
what begins one: the trainer, the simulation, and rows side by side.
"""

from __future__ import annotations

import pytest

from manyeyes.federation.child import how_it_ended


@pytest.mark.parametrize(("code", "said"), [(0, "exit code 0"), (9, "exit code 9"), (-9, "SIGKILL"), (-11, "SIGSEGV")])
def test_an_exit_code_is_said_as_people_say_it(code: int, said: str) -> None:
    assert how_it_ended(code) == said
