"""Advice for a run: from what the sites have and how fast the machine is to a plan, with the reason of each choice.

Nothing here looks at a file or a clock; `survey.py` does. The rules are rules of thumb: what they rest on stands in the
table below, and every choice says why it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from manyeyes.config import RunConfig, ScaffoldSection, TrainSection, fill_in
from manyeyes.errors import ConfigError
from manyeyes.learners.speed import Speed

__all__ = [
    "HEAD",
    "PLANNED",
    "Advice",
    "Choice",
    "Estimate",
    "SiteEstimate",
    "SiteFacts",
    "Situation",
    "Traffic",
    "check_hours",
    "estimate",
    "filled",
    "recommend",
    "warnings",
    "within_hours",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one kind of training goes.

    Attributes:
        optimizer, lr, weight_decay: as in the configuration.
        epochs: passes over a site's pictures in one round.
        server_lr: how far the server goes along the mean of the updates, where rounds are short.
        steps: optimiser steps of a site in the whole run.
        mosaic: probability that a training picture is made of four.
        source: where these were seen to work, for people.
    """

    optimizer: str
    lr: float
    weight_decay: float
    epochs: float
    server_lr: float
    steps: int
    mosaic: float
    source: str


# -- the numbers behind the advice, and where each comes from ---------------------------------------------------------

RECIPES = {
    # configs/streets.yaml with freeze 22: four rounds of 15 steps brought .477 to .500 mAP50. More steps: not measured.
    "head": Recipe(
        "sgd", 0.002, 0.0005, 1, 1.0, 100, 1.0, "worked for the head alone on pictures of streets and rooms"
    ),
    # configs/streets.yaml: ten rounds of 8 steps. With four times the rate, or mosaics, it forgot (docs/together.md).
    "gentle": Recipe("adamw", 5e-5, 0.01, 0.5, 1.5, 75, 0.0, "kept and bettered what was known of streets and rooms"),
    # configs/bccd.yaml: 80 rounds of 6 steps; its boxes still became tighter in the last of them (docs/together.md).
    "new": Recipe("adamw", 0.001, 0.01, 0.5, 1.5, 480, 0.5, "worked for new classes on pictures of blood cells"),
    # manyeyes demo: 120 rounds of 3 steps (docs/demo.md).
    "known": Recipe("adamw", 0.001, 0.01, 1 / 3, 2.5, 360, 0.5, "worked for the whole network in the demo"),
    # scripts/train_base.py: 15 epochs of 1400 pictures from scratch, in batches of 16; not in rounds.
    "scratch": Recipe("adamw", 0.002, 0.01, 1, 1.0, 1300, 1.0, "made this package's own starting weights from nothing"),
}
# Where the server's longer steps were measured, rounds had 3 to 8 steps; in rounds of 9 they swung (docs/demo.md).
SHORT_ROUND = 8
# Tests on validation pictures over a run: enough for a curve, and far cheaper than one after each short round. Chosen.
TESTS = 20
# Streets, 71 to 116 pictures a site, forget what COCO taught unless steps are small (docs/together.md). Chosen.
SMALL_SITE = 300
# Where the layers of YOLOv8 end that look for features in general, and the head begins.
HEAD = 22
# The size the COCO weights were trained at; larger pictures than that are scaled down unless objects get too small.
USUAL_IMGSZ = 640
# YOLOv8's finest grid has cells of 8 px: an object of less than two of them is hard to place.
SMALL_OBJECT = 16
LARGEST_IMGSZ = 1280
# Chosen, not measured: the least size our own configurations use (`manyeyes demo --quick`).
SMALLEST_IMGSZ = 256
# What our measurements on CPUs used; a GPU is not busy with fewer than 16 (Ultralytics' default).
BATCH = {"cpu": 8, "cuda": 16}
# The most that our own configurations hold, and chosen.
FEWEST_ROUNDS, MOST_ROUNDS = 4, 120
# When hours are short: rounds are given up to this share of what was wanted before the size is lowered; with a single
# round nothing is learned from each other.
ENOUGH_ROUNDS, SHORTEST_ROUNDS = 0.5, 2
# The demo's car park with a third of the others' pictures was not heard when weighted by pictures (docs/demo.md). From
# where on is chosen.
UNHEARD = 1 / 2
# Sites are unlike if the shares of their classes differ by this much (total variation), their objects' sizes by this
# factor, or the mean brightness of their pictures (0 to 255) by this much: streets by night are 55 darker than by day.
UNLIKE_CLASSES, UNLIKE_SIZES, UNLIKE_BRIGHTNESS = 0.35, 3.0, 40.0
# Views of each picture whose features are kept on disk (train.cache_views); worth the disk if each is used three times.
VIEWS, LEAST_USES = 4, 3
# Share of the free disk that views may take; checkpoints, models and other people need room too.
DISK_SHARE = 0.25
# Fewer objects than this cannot show what a class looks like, nor say how well it is found.
FEW_OBJECTS = 20

PLANNED = (
    "train.freeze",
    "train.imgsz",
    "train.batch",
    "train.epochs",
    "federation.rounds",
    "train.optimizer",
    "train.lr",
    "train.weight_decay",
    "train.augment",
    "train.batchnorm",
    "federation.strategy",
    "federation.weighting",
    "train.cache_views",
    "evaluate.every",
)
"""Keys a plan may hold; what a configuration states of them is kept."""


# -- what is known ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What one site has.

    Attributes:
        site: its node id.
        pictures: split → how many.
        objects: class it annotates → objects in its training pictures.
        long_side: median of the training pictures' longer sides, in pixels.
        object_side: median over the training objects of √area / longer side of the picture; 0 without objects.
        brightness: mean grey value of its training pictures, 0 to 255.
        hours: most hours its machine may train.
    """

    site: str
    pictures: Mapping[str, int]
    objects: Mapping[str, int]
    long_side: float
    object_side: float
    brightness: float
    hours: float | None = None

    @property
    def training(self) -> int:
        """Number of training pictures."""
        return self.pictures.get("train", 0)


@dataclass(frozen=True)
class Situation:
    """The sites, and what the starting weights know.

    Attributes:
        sites: one entry a site.
        known: names of the classes the starting weights can tell.
        weights: "base", "scratch" or a file, as in the configuration.
        device: "cpu" or "cuda".
        free_disk: bytes free where the run is kept.
        head_inputs: (channels, stride) of what the head reads.
    """

    sites: tuple[SiteFacts, ...]
    known: frozenset[str]
    weights: str
    device: str
    free_disk: int
    head_inputs: tuple[tuple[int, int], ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order they are first met."""
        return tuple(dict.fromkeys(name for site in self.sites for name in site.objects))

    @cached_property
    def new_classes(self) -> tuple[str, ...]:
        """Classes the starting weights cannot tell."""
        return tuple(name for name in self.classes if name not in self.known)

    @cached_property
    def difference(self) -> str | None:
        """In what the sites differ most visibly; None if they are alike."""
        for rule in (_other_classes, _other_shares, _other_sizes, _other_light):
            for a, b in combinations(self.sites, 2):
                if found := rule(a, b):
                    return found
        return None

    def holders(self, name: str) -> list[str]:
        """Sites that mark a class."""
        return [site.site for site in self.sites if name in site.objects]


def _other_classes(a: SiteFacts, b: SiteFacts) -> str | None:
    return None if set(a.objects) == set(b.objects) else f"{a.site} and {b.site} mark different classes"


def _other_shares(a: SiteFacts, b: SiteFacts) -> str | None:
    of_a, of_b = max(1, sum(a.objects.values())), max(1, sum(b.objects.values()))
    distance = 0.5 * sum(abs(a.objects[name] / of_a - b.objects[name] / of_b) for name in a.objects)
    return f"{a.site} and {b.site} see the classes unequally often" if distance > UNLIKE_CLASSES else None


def _other_sizes(a: SiteFacts, b: SiteFacts) -> str | None:
    small, large = sorted((a, b), key=lambda site: site.object_side)
    if small.object_side and large.object_side / small.object_side > UNLIKE_SIZES:
        return (
            f"objects are {large.object_side / small.object_side:.0f} times as large at {large.site} as at {small.site}"
        )
    return None


def _other_light(a: SiteFacts, b: SiteFacts) -> str | None:
    dark, light = sorted((a, b), key=lambda site: site.brightness)
    return (
        f"{dark.site} is darker than {light.site}" if light.brightness - dark.brightness > UNLIKE_BRIGHTNESS else None
    )


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of the plan.

    Attributes:
        key: its place in the configuration, e.g. "train.imgsz".
        value: what is advised, or what the configuration states.
        reason: one line for people who never trained a network.
        stated: the configuration states it, so it was not chosen here.
    """

    key: str
    value: Any
    reason: str
    stated: bool = False


class _Plan:
    """Choices in the order they are made; what the configuration states or the machine forces comes first."""

    def __init__(self, config: RunConfig, forced: Mapping[str, Choice]) -> None:
        sections = {"train": config.train, "federation": config.federation, "evaluate": config.evaluate}
        self._stated = {
            f"{name}.{key}": getattr(section, key)
            for name, section in sections.items()
            for key in section.model_fields_set
        }
        self._forced = forced
        self.choices: list[Choice] = []

    def __getitem__(self, key: str) -> Any:
        return next(choice.value for choice in self.choices if choice.key == key)

    def states(self, key: str) -> bool:
        return key in self._stated

    def add(self, key: str, value: Any, reason: str) -> Any:
        choice = Choice(key, value, reason)
        if key in self._stated:
            choice = Choice(key, self._stated[key], "as your configuration says", stated=True)
        elif key in self._forced:
            choice = self._forced[key]
        self.choices.append(choice)
        return choice.value


def recommend(
    config: RunConfig, situation: Situation, forced: Mapping[str, Choice] | None = None
) -> tuple[Choice, ...]:
    """The plan for a run, before it is bounded by the sites' hours.

    Args:
        config: keys it states are kept.
        situation: the sites and the starting weights.
        forced: key → choice that the machine or the hours leave no freedom for.
    """
    plan = _Plan(config, forced or {})
    freeze = plan.add("train.freeze", *_layers(situation))
    imgsz, why = _image_size(situation)
    if config.evaluate.imgsz:
        imgsz, why = config.evaluate.imgsz, "the size your configuration tests at"
    plan.add("train.imgsz", imgsz, why)
    batch = plan.add("train.batch", *_batch(situation))
    recipe = RECIPES[_recipe_of(situation, freeze)]
    per_round = _epochs_and_steps(plan, config, situation, batch, recipe)
    wanted = round(recipe.steps / per_round)
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, wanted))
    reason = f"about {rounds * per_round} training steps a site in all, for {_task(situation, freeze)}"
    plan.add("federation.rounds", rounds, reason)
    _optimizer(plan, recipe, needs_sgd=isinstance(config.federation.strategy, ScaffoldSection))
    of_four = "pictures are put together from four now and then, which makes them varied"
    whole = "pictures are shown as they are: put together from four, they would look like nothing the network knows"
    plan.add("train.augment", {"mosaic": recipe.mosaic}, of_four if recipe.mosaic else whole)
    _merging(plan, situation, freeze)
    _server(plan, recipe, per_round)
    every = max(1, round(plan["federation.rounds"] / TESTS))
    plan.add("evaluate.every", every, "rounds between tests on validation pictures, which show how far it is")
    if freeze == HEAD and not config.train.steps:
        plan.add("train.cache_views", *_views(plan, situation))
    return tuple(plan.choices)


def _layers(situation: Situation) -> tuple[int, str]:
    if situation.weights == "scratch":
        return 0, "the whole network is trained: it starts from nothing"
    if situation.new_classes:
        return 0, f"the whole network is trained: the starting weights have never seen {_listed(situation.new_classes)}"
    if situation.weights == "base":
        return 0, "the whole network is trained: the shipped weights know only rendered scenes"
    if _small(situation):
        return 0, (
            f"the whole network is trained, in small steps: the starting weights know all your classes, and with fewer "
            f"than {SMALL_SITE} pictures a site larger steps would make it forget what it knows"
        )
    return 0, f"the whole network is trained: a site has {SMALL_SITE} pictures or more"


def _recipe_of(situation: Situation, freeze: int) -> str:
    if situation.weights == "scratch":
        return "scratch"
    if freeze == HEAD and not situation.new_classes:
        return "head"
    if situation.new_classes:
        return "new"
    return "gentle" if situation.weights != "base" and _small(situation) else "known"


def _small(situation: Situation) -> bool:
    return max(site.training for site in situation.sites) < SMALL_SITE


def _task(situation: Situation, freeze: int) -> str:
    return {
        "head": "fitting the head to your pictures",
        "gentle": "fitting the network to your pictures without forgetting",
        "new": "learning new classes",
        "known": "fitting the network to your pictures",
        "scratch": "a first start from nothing",
    }[_recipe_of(situation, freeze)]


def _image_size(situation: Situation) -> tuple[int, str]:
    sides = sorted(site.long_side for site in situation.sites)
    usual = sides[len(sides) // 2]
    imgsz = max(64, 32 * round(min(usual, USUAL_IMGSZ) / 32))
    reason = f"your pictures' longer side is usually {usual:.0f} px"
    if usual > USUAL_IMGSZ:
        reason += f"; {USUAL_IMGSZ} is enough to see your objects"
    with_objects = [site for site in situation.sites if site.object_side]
    smallest = min(with_objects, key=lambda site: site.object_side, default=None)
    if smallest and smallest.object_side * imgsz < SMALL_OBJECT:
        larger = min(LARGEST_IMGSZ, 32 * math.ceil(SMALL_OBJECT / smallest.object_side / 32))
        before, after = smallest.object_side * imgsz, smallest.object_side * larger
        return larger, (
            f"objects at {smallest.site} are small: usually {before:.0f} px at size {imgsz}, {after:.0f} px at {larger}"
        )
    return imgsz, reason


def _batch(situation: Situation) -> tuple[int, str]:
    where = "a processor without a GPU" if situation.device == "cpu" else "a GPU"
    return BATCH[situation.device], f"pictures a training step looks at; usual on {where}"


def _epochs_and_steps(plan: _Plan, config: RunConfig, situation: Situation, batch: int, recipe: Recipe) -> int:
    """Settle the epochs; returns optimiser steps in a round at a site of middle size."""
    if config.train.steps:
        plan.add("train.steps", config.train.steps, "")
        return config.train.steps
    sizes = sorted(site.training for site in situation.sites)
    steps = math.ceil(sizes[len(sizes) // 2] / batch)
    share, reason = recipe.epochs, f"passes over its own pictures before a site's work is merged; {recipe.source}"
    if recipe.server_lr > 1:
        share = min(share, 1 / math.ceil(steps / SHORT_ROUND))
        reason += ". Short rounds learn more from each other; the next goes on with the other pictures"
    epochs: float = plan.add("train.epochs", round(share, 4), reason)
    return max(1, round(epochs * steps))


def _optimizer(plan: _Plan, recipe: Recipe, *, needs_sgd: bool) -> None:
    advised, why = recipe.optimizer, f"how weights are changed; {recipe.source}"
    if plan.states("train.lr"):
        advised, why = TrainSection().optimizer, "the default, which your learning rate was written for"
    if needs_sgd:
        advised, why = "sgd", "the strategy scaffold needs it"
    optimizer = plan.add("train.optimizer", advised, why)
    if optimizer != recipe.optimizer:
        recipe = next(other for other in RECIPES.values() if other.optimizer == optimizer)
    plan.add("train.lr", recipe.lr, f"how far one step goes; {recipe.source}")
    plan.add("train.weight_decay", recipe.weight_decay, "keeps weights small; belongs to the optimiser")


def _merging(plan: _Plan, situation: Situation, freeze: int) -> None:
    if _recipe_of(situation, freeze) == "gentle":
        plan.add("train.batchnorm", "frozen", "picture statistics stay as they are: part of what the network knows")
    elif freeze < HEAD and situation.difference:
        reason = f"one site's picture statistics would mislead the others: {situation.difference}"
        plan.add("train.batchnorm", "frozen", reason)
    else:
        why = "the sites' pictures are alike" if freeze < HEAD else "as it was where the head alone worked"
        plan.add("train.batchnorm", "train", f"picture statistics are learned along; {why}")
    sizes = sorted((site.training, site.site) for site in situation.sites)
    (fewest, small), (most, large) = sizes[0], sizes[-1]
    if fewest < UNHEARD * most:
        reason = f"{small} has {fewest} pictures, {large} {most}: counted by pictures, {small} would not be heard"
        plan.add("federation.weighting", "inverse_sqrt", reason)
    else:
        plan.add(
            "federation.weighting", "examples", "each picture counts the same; no site is far smaller than the others"
        )


def _server(plan: _Plan, recipe: Recipe, per_round: int) -> None:
    """Whoever states another optimiser or rate has another recipe, which was not measured with longer steps."""
    ours = all(plan[f"train.{key}"] == getattr(recipe, key) for key in ("optimizer", "lr"))
    rate, why = 1.0, "the plain mean of the sites' changes"
    if ours and recipe.server_lr > 1 and per_round <= SHORT_ROUND:
        rate, why = recipe.server_lr, "in short rounds what one site alone can teach would be lost in the plain mean"
    plan.add("federation.strategy", {"name": "fedavg", "server_lr": rate}, f"how the sites' work is merged: {why}")


def _views(plan: _Plan, situation: Situation) -> tuple[int, str]:
    passes = plan["federation.rounds"] * plan["train.epochs"]
    if passes < VIEWS * LEAST_USES:
        return 0, f"views of pictures kept on disk; with {passes:g} passes they would hardly be used again"
    # Twice: mosaics, and for the end of the run views without; float32 at worst. "Alone" and "together" come one after
    # the other, and "pooled" has as many pictures as all sites.
    values = sum(channels * (plan["train.imgsz"] // stride) ** 2 for channels, stride in situation.head_inputs)
    needed = 2 * VIEWS * 4 * values * sum(site.training for site in situation.sites)
    if needed > DISK_SHARE * situation.free_disk:
        return 0, f"views of pictures kept on disk: they would take {needed / 1e9:.0f} GB, too much for this disk"
    return VIEWS, (
        f"views of each picture are kept on disk, at most {max(1, round(needed / 1e9))} GB: what is not trained "
        "is computed once instead of in each pass"
    )


# -- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the messages of one node.

    Attributes:
        fit_down, fit_up: the request to train, and the update.
        test_down: the request to test.
    """

    fit_down: int
    fit_up: int
    test_down: int


@dataclass(frozen=True, slots=True)
class SiteEstimate:
    """What a run asks of one site.

    Attributes:
        seconds_together: training and testing for the model all train together.
        seconds_alone: the same for its own model, the yardstick; 0 if that is not compared.
        bytes_up, bytes_down: sent and received for the model trained together.
    """

    site: str
    seconds_together: float
    seconds_alone: float
    bytes_up: int
    bytes_down: int

    @property
    def seconds(self) -> float:
        """Work of the site's machine in the whole run."""
        return self.seconds_together + self.seconds_alone


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run costs.

    Attributes:
        sites: by site, if each computes on a machine like this one.
        seconds_together: the model trained together, sites one after the other on this machine.
        seconds: the whole run on this machine: all rows of the table and the tests.
    """

    sites: tuple[SiteEstimate, ...]
    seconds_together: float
    seconds: float


def estimate(config: RunConfig, situation: Situation, speed: Speed, traffic: Traffic) -> Estimate:
    """What a run with a plan costs on a machine of this speed; what kept views save is not counted."""
    cost = _Cost(config, speed)
    sites = tuple(_site_estimate(config, site, cost, traffic) for site in situation.sites)
    pictures = {split: sum(s.pictures.get(split, 0) for s in situation.sites) for split in ("train", "val", "test")}
    held_out = cost.tested * cost.test(pictures["val"])
    together = sum(site.seconds_together for site in sites) + held_out
    rows = {
        "untrained": 0.0,
        "alone": sum(site.seconds_alone for site in sites) + len(sites) * held_out,
        "together": together,
        "pooled": cost.rounds * cost.fit(pictures["train"]) + 2 * held_out,
    }
    models = len(config.compare) + ("alone" in config.compare) * (len(sites) - 1)
    return Estimate(sites, together, sum(rows[row] for row in config.compare) + models * cost.test(pictures["test"]))


class _Cost:
    """Seconds of the parts of a run."""

    def __init__(self, config: RunConfig, speed: Speed) -> None:
        self.train, self.speed = config.train, speed
        self.shared, self.own = config.federation.rounds, config.federation.finetune_after
        self.rounds = self.shared + self.own
        self.asked = math.ceil(self.shared * config.federation.fraction)
        self.tested = math.ceil(self.rounds / config.evaluate.every)
        self.tested_at = config.evaluate.imgsz or config.train.imgsz

    def fit(self, pictures: int) -> float:
        """One round's training at a site with so many pictures."""
        train = self.train
        seen = train.steps * train.batch if train.steps else max(1.0, pictures * train.epochs)
        return self.speed.training_seconds(seen, train.freeze, train.imgsz)

    def test(self, pictures: int) -> float:
        return self.speed.testing_seconds(pictures, self.tested_at)

    def of_site(self, site: SiteFacts, rounds: int) -> float:
        return rounds * self.fit(site.training) + self.tested * self.test(site.pictures.get("val", 0))


def _site_estimate(config: RunConfig, site: SiteFacts, cost: _Cost, traffic: Traffic) -> SiteEstimate:
    return SiteEstimate(
        site.site,
        cost.of_site(site, cost.asked + cost.own),
        cost.of_site(site, cost.rounds) if "alone" in config.compare else 0.0,
        cost.asked * traffic.fit_up,
        # For its own model a site is sent the common one once to go on from, and once more to be tested.
        (cost.asked + bool(cost.own)) * traffic.fit_down + (cost.tested + bool(cost.own)) * traffic.test_down,
    )


# -- hours ------------------------------------------------------------------------------------------------------------


def _too_long(config: RunConfig, situation: Situation, speed: Speed) -> tuple[int, SiteFacts, float] | None:
    """The site whose hours are exceeded most: (its place in the configuration, what it has, hours it needs)."""
    cost = _Cost(config, speed)
    over = []
    for index, site in enumerate(situation.sites):
        seconds = _site_estimate(config, site, cost, Traffic(0, 0, 0)).seconds
        if site.hours is not None and seconds > 3600 * site.hours:
            over.append((seconds / site.hours, index, site, seconds / 3600))
    return max(over)[1:] if over else None


def filled(config: RunConfig, plan: Sequence[Choice]) -> RunConfig:
    """The configuration with a plan in it.

    Raises:
        ConfigError: two values cannot stand together.
    """
    return fill_in(config, {choice.key: choice.value for choice in plan})


def check_hours(config: RunConfig, situation: Situation, speed: Speed) -> None:
    """Refuse a plan that cannot end in the hours a site allows.

    Raises:
        ConfigError: names the site, what it allows, what the plan takes, and what would be enough.
    """
    found = _too_long(config, situation, speed)
    if found is None:
        return
    index, site, needed = found
    rows = "alone and together" if "alone" in config.compare else "together"
    raise ConfigError(
        f"site {site.site} may train {site.hours:g} h, but this plan takes it about {_hours(needed)} h at the speed of "
        f"this machine ({rows}: {config.federation.rounds} rounds, {site.training} pictures of "
        f"{config.train.imgsz} px)",
        key=f"sites.{index}.hours",
        cure=f"Any one of these is enough: {'; '.join(_cures(config, situation, speed, index, needed))}.",
    )


def _cures(config: RunConfig, situation: Situation, speed: Speed, index: int, needed: float) -> list[str]:
    def suits(**changes: int) -> bool:
        rounds = changes.pop("rounds", config.federation.rounds)
        federation = config.federation.model_copy(update={"rounds": rounds})
        changed = {"train": config.train.model_copy(update=changes), "federation": federation}
        return _too_long(config.model_copy(update=changed), situation, speed) is None

    cures = []
    if rounds := next((r for r in range(config.federation.rounds - 1, 0, -1) if suits(rounds=r)), None):
        cures.append(f"fewer rounds (federation.rounds: {rounds})")
    if imgsz := next((s for s in range(config.train.imgsz - 32, SMALLEST_IMGSZ - 1, -32) if suits(imgsz=s)), None):
        cures.append(f"smaller pictures (train.imgsz: {imgsz})")
    if config.train.freeze < HEAD and suits(freeze=HEAD):
        cures.append(f"training the head alone (train.freeze: {HEAD})")
    return [*cures, f"more time (sites.{index}.hours: {_hours(needed)})"]


def _hours(hours: float) -> str:
    """Rounded up to two digits, so that allowing as much is enough.

    >>> _hours(0.0123), _hours(12.31)
    ('0.013', '13')
    """
    digits = 1 - math.floor(math.log10(hours))
    return f"{math.ceil(hours * 10**digits) / 10**digits:g}"


def within_hours(
    config: RunConfig, situation: Situation, speed: Speed, forced: Mapping[str, Choice] | None = None
) -> tuple[Choice, ...]:
    """The plan of `recommend`, made shorter as far as the hours of the sites demand.

    Rounds are given up first, then the size of pictures, then all layers but the head; never what is stated.

    Args:
        config: keys it states are kept.
        situation: the sites, with their hours.
        speed: of this machine, for the freeze level of the plan and for the head alone.
        forced: as for `recommend`.

    Raises:
        ConfigError: even the shortest plan does not end in time.
    """
    plan = recommend(config, situation, forced)
    if not any(site.hours for site in situation.sites):
        return plan
    for shorter in _ever_shorter(config, situation, plan, forced or {}):
        plan = recommend(config, situation, shorter)
        if _too_long(filled(config, plan), situation, speed) is None:
            return plan
    check_hours(filled(config, plan), situation, speed)
    return plan


def _ever_shorter(
    config: RunConfig, situation: Situation, plan: Sequence[Choice], forced: Mapping[str, Choice]
) -> Iterator[dict[str, Choice]]:
    """What to force on the plan, dearest last: nothing, fewer rounds, smaller pictures, the head alone, both."""
    yield dict(forced)
    layers, size = _choice(plan, "train.freeze"), _choice(plan, "train.imgsz")
    freezes = [layers.value] if layers.stated or layers.value == HEAD else [layers.value, HEAD]
    fixed_size = size.stated or config.evaluate.imgsz
    sizes = [size.value] if fixed_size else [size.value, *range(size.value - 32, SMALLEST_IMGSZ - 1, -32)]
    for freeze in freezes:
        shorter = {**forced, **_lowered(layers, freeze)}
        rounds = _choice(recommend(config, situation, shorter), "federation.rounds")
        enough = rounds.value if rounds.stated else math.ceil(rounds.value * ENOUGH_ROUNDS)
        for imgsz in sizes:
            for number in range(rounds.value, enough - 1, -1):
                yield {**shorter, **_lowered(size, imgsz), **_lowered(rounds, number)}
        for number in range(enough - 1, SHORTEST_ROUNDS - 1, -1):
            yield {**shorter, **_lowered(size, sizes[-1]), **_lowered(rounds, number)}


def _choice(plan: Sequence[Choice], key: str) -> Choice:
    return next(choice for choice in plan if choice.key == key)


def _lowered(choice: Choice, value: int) -> dict[str, Choice]:
    if value == choice.value:
        return {}
    reason = f"{choice.value} would be better, but does not end in the hours your sites allow"
    return {choice.key: Choice(choice.key, value, reason)}


# -- the whole advice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan for a run and what it rests on.

    Attributes:
        config: the run with the plan filled in.
        situation: what the sites have.
        choices: the plan, each with its reason.
        estimate: what it costs.
        speed: of the machine it was measured on.
        warnings: what a careful person would mend or know first.
    """

    config: RunConfig
    situation: Situation
    choices: tuple[Choice, ...]
    estimate: Estimate
    speed: Speed
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        estimated = [{**asdict(site), "seconds": site.seconds} for site in self.estimate.sites]
        return {
            "sites": [asdict(site) for site in self.situation.sites],
            "known": [name for name in self.situation.classes if name in self.situation.known],
            "new": list(self.situation.new_classes),
            "plan": [asdict(choice) for choice in self.choices],
            "estimate": {**asdict(self.estimate), "sites": estimated},
            "speed": asdict(self.speed),
            "warnings": list(self.warnings),
        }


def warnings(situation: Situation) -> tuple[str, ...]:
    """What is missing or odd at the sites, one sentence each, with what to do."""
    return tuple(
        sentence for rule in (_splits_missing, _rare, _lonely, _spelling, _from_nothing) for sentence in rule(situation)
    )


def _splits_missing(situation: Situation) -> Iterator[str]:
    for split, what in (("val", "progress cannot be seen there"), ("test", "nobody will know what it gains")):
        if without := [site.site for site in situation.sites if not site.pictures.get(split)]:
            yield f"No {split} pictures at {_listed(without)}: {what}. Set some labelled pictures aside."


def _rare(situation: Situation) -> Iterator[str]:
    for name in situation.classes:
        count = sum(site.objects.get(name, 0) for site in situation.sites)
        if count < FEW_OBJECTS:
            yield (
                f"{name!r} has {count} training objects at all sites together: with fewer than about {FEW_OBJECTS} it "
                f"will hardly be learned. Label more, or leave it out under `annotates`."
            )


def _lonely(situation: Situation) -> Iterator[str]:
    if len(situation.sites) < 2:
        yield "There is only one site: nothing can be learned together."
        return
    shared = [name for name in situation.classes if len(situation.holders(name)) > 1]
    if not shared:
        yield "No class is marked at more than one site: the sites can hardly learn from each other."
        return
    for name in situation.classes:
        if len(holders := situation.holders(name)) == 1:
            yield f"Only {holders[0]} marks {name!r}: the others gain that class, but add nothing to it."


def _spelling(situation: Situation) -> Iterator[str]:
    plain = {name.casefold(): name for name in situation.known}
    for name in situation.new_classes:
        for form in (name.casefold(), name.casefold().removesuffix("s")):
            if form in plain:
                yield f"The starting weights know {plain[form]!r}. If {name!r} is the same, call it so and save time."
                break


def _from_nothing(situation: Situation) -> Iterator[str]:
    if situation.weights == "scratch":
        yield "From scratch a network needs thousands of pictures: give model.weights a trained file if you can."


def _listed(words: Sequence[str], most: int = 4) -> str:
    """A few words in a sentence.

    >>> _listed(["a", "b", "c"]), _listed(list("abcdef"))
    ('a, b and c', 'a, b, c and 3 more')
    """
    shown = list(words) if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
