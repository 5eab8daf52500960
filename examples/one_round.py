"""One federated round, by hand: three sites, one detector, no picture leaves its site.

    python examples/one_round.py

Renders three small sites, asks each to train for one epoch, merges the three updates and tests before and after.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.datasets.scenes import write_scenes
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.messages import FIT, fit_request, read_update
from manyeyes.federation.strategies import FedAvg, Merge
from manyeyes.federation.transport import Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.models import build_template


def main(images: int = 24, imgsz: int = 256) -> dict[str, float]:
    """Hold the round; returns mAP50 on all sites' test pictures before and after."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sites = {
            name: load_dataset(path)
            for name, path in write_scenes(folder / "sites", images=images, imgsz=imgsz, seed=1).items()
        }

        # The server builds the one form of model that everybody trains.
        learner = DetectorLearner(build_template(ModelSection(), ("person", "car")))
        before = learner.template.weights

        # Each site is a client; the local transport runs them in this process.
        clients = {name: Client(name, learner, data, folder / "state" / name) for name, data in sites.items()}
        transport = LocalTransport(clients)
        plans = {
            name: FitPlan(train=TrainSection(imgsz=imgsz, lr=0.002), round=0, rounds=1, node_id=name)
            for name in transport.nodes()
        }
        transport.send(
            [
                Request(f"1-{name}", name, FIT, fit_request(before, plan, learner.template.form_hash))
                for name, plan in plans.items()
            ]
        )

        # Updates are checked and merged one by one as they arrive.
        merge = Merge(before)
        while replies := transport.receive(timeout=None):
            for reply in replies:
                assert reply.record is not None, reply.error
                delta_names, buffer_names = learner.expected_tensors(plans[reply.node_id])
                update = read_update(reply.record, before, delta_names, buffer_names)
                merge.add(update)
                print(f"{reply.node_id}: {update.num_examples} pictures, {reply.bytes_up / 1e6:.1f} MB")

        mean = merge.result()
        after, _ = FedAvg().step(before, mean, {})
        after = after.replace(mean.buffers)

        scores = {}
        for moment, weights in (("before", before), ("after", after)):
            metrics = learner.test_sites(dict.fromkeys(sites, weights), sites, "test", imgsz)
            scores[moment] = metrics["mixed"].map50
            print(f"{moment}: mAP50 {scores[moment]:.3f} on all sites' test pictures")
        return scores


if __name__ == "__main__":
    main()
