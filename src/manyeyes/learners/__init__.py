"""Learners: what trains and tests one kind of model."""

import os

# Read once, when torch is loaded; whoever has set them knows better. OpenMP threads that wait spin for milliseconds by
# default: beside another program on the same cores training then runs several times slower. Threads that do not spin
# at all must be woken for each of a step's many short sections, which costs a third of the speed on two free cores.
# A few microseconds give both.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
