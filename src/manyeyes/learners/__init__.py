"""Learners: what trains and tests one kind of model."""

import os

# Waiting OpenMP threads spin by default: beside the thread that makes batches, or another program on the same cores,
# training then runs several times slower. Read once, when torch is loaded; whoever has set it knows better.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
