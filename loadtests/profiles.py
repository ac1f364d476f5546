"""The load profiles: who asks, how many at once, for how long, and what fails the run. Data only."""

from typing import Literal

import msgspec

Kind = Literal["Importer", "DeltaImporter", "WrongToken", "SlowReader"]
"""The user classes of locustfile.py."""


class Stage(msgspec.Struct, frozen=True):
    """Users of each kind for a share of the run's time."""

    share: float
    users: dict[Kind, int]
    spawn_rate: float = 50.0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One way of loading the service. `items` are products in all, over all stores."""

    name: str
    about: str
    items: int
    minutes: float
    limit: int = 1000
    stores: int = 1
    all_feeds: bool = False
    once: bool = False
    """Ends when each importer has walked everything once; `minutes` are the longest it may take then."""
    fresh_tokens: bool = False
    """Every request brings a token that was never seen, as Clerk may do."""
    changes_per_second: int = 0
    """Items that the shop changes meanwhile."""
    stages: tuple[Stage, ...]
    error_budget: float = 0.001
    """Share of the importers' requests that may fail and be asked again."""
    p99_times: float = 4.0
    """How many times the p99 of the warm-up, the first tenth of the run, the p99 of the rest may be."""
    growth_megabytes: float = 60.0
    """By how much the service's memory may grow from the end of the warm-up to the end."""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="nightly",
            about="One importer walks all five feeds once, as Clerk does every night.",
            items=200_000,
            minutes=30,
            all_feeds=True,
            once=True,
            stages=(Stage(1, {"Importer": 1}),),
        ),
        Profile(
            name="platform",
            about="A platform's 200 stores are walked at once, each request with a token of its own.",
            items=200_000,
            minutes=2,
            limit=200,
            stores=200,
            fresh_tokens=True,
            stages=(
                Stage(0.1, {"Importer": 20}, 10),
                Stage(0.1, {"Importer": 80}, 20),
                Stage(0.8, {"Importer": 200}, 20),
            ),
            # A tenth of the stores warm it up: ten times as many wait ten times as long, and must not wait longer.
            p99_times=20,
            growth_megabytes=200,
        ),
        Profile(
            name="eager",
            about="An importer with Clerk's default page of 25 items: the most requests for the fewest items.",
            items=200_000,
            minutes=2,
            limit=25,
            stages=(Stage(1, {"Importer": 1}),),
        ),
        Profile(
            name="incremental",
            about="Deltas of a shop that changes all the time: what changed since the last sync, and nothing lost.",
            items=200_000,
            minutes=3,
            changes_per_second=200,
            stages=(Stage(1, {"DeltaImporter": 2}),),
        ),
        Profile(
            name="hostile",
            about="One importer beside 40 clients that try tokens and 10 that read as slowly as they can.",
            items=200_000,
            minutes=2,
            fresh_tokens=True,
            stages=(
                Stage(0.2, {"Importer": 1}),
                Stage(0.8, {"Importer": 1, "WrongToken": 40, "SlowReader": 10}),
            ),
            # The attackers share the cores with the service, and with the importer that measures.
            p99_times=20,
            # What a slow reader does not take waits in the service: about 4 MB each.
            growth_megabytes=120,
        ),
        Profile(
            name="crowded",
            about="One importer beside 200 clients of another store that read as slowly as they can.",
            items=200_000,
            minutes=2,
            stages=(
                Stage(0.2, {"Importer": 1}),
                Stage(0.8, {"Importer": 1, "SlowReader": 200}),
            ),
            p99_times=2,
            # What the eight that are answered at once do not take waits in the service, about 4 MB each.
            growth_megabytes=82,
        ),
        Profile(
            name="soak",
            about="Full walks and deltas for hours: memory that creeps, connections that leak.",
            items=200_000,
            minutes=60,
            changes_per_second=20,
            stages=(Stage(1, {"Importer": 1, "DeltaImporter": 1}),),
            growth_megabytes=30,
        ),
    )
}


class Request(msgspec.Struct, frozen=True):
    """One request, as its client saw it. `at` is seconds since the run began; status 0: no answer, or cut off."""

    at: float
    seconds: float
    kind: Kind
    status: int
    items: int = 0
    bytes: int = 0
    cause: str = ""


class Walk(msgspec.Struct, frozen=True):
    """One walk to its end. `changed` are the ids that a delta brought; a full walk only counts what was missing."""

    store: str
    feed: str
    items: int
    pages: int
    seconds: float
    repeated: int = 0
    missing: int = 0
    since: float | None = None
    began: float = 0.0
    """Both in unix seconds by PostgreSQL's clock, which is this machine's."""
    changed: list[int] = msgspec.field(default_factory=list)


class Sample(msgspec.Struct, frozen=True):
    """The service at one moment: resident memory in MB, and CPU seconds used so far."""

    at: float
    memory: float
    cpu: float


class Recording(msgspec.Struct):
    """What the users wrote down. `first` is the unix time that `at` counts from."""

    first: float
    requests: list[Request] = msgspec.field(default_factory=list)
    walks: list[Walk] = msgspec.field(default_factory=list)


class Plan(msgspec.Struct, frozen=True):
    """What the locust process is told: the profile, its targets, and where to write."""

    profile: Profile
    seconds: float
    stores: tuple[str, ...]
    token: str
    totals: dict[str, int]
    """Items of each feed of each store."""
    first_ids: dict[str, int]
    """The smallest id of each store's products, which are numbered on from it."""
    slow_store: str
    recording: str
