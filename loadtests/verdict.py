"""What fails a load run: lost items, importers turned away, many errors, a slow tail, memory that grows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from loadtests.profiles import Profile, Recording, Request, Sample, Walk

IMPORTERS = ("Importer", "DeltaImporter")
WARM_UP_SHARE = 0.1


class Check(msgspec.Struct, frozen=True):
    """One threshold, what was measured, and whether it holds."""

    name: str
    measured: str
    rule: str
    holds: bool


class Outcome(msgspec.Struct, frozen=True):
    """A run, judged."""

    checks: list[Check]
    lost: int
    items: int
    items_per_second: float
    requests: int
    finished_walks: int
    p50_ms: float
    p99_ms: float
    warm_p99_ms: float
    statuses: dict[str, dict[int, int]]
    causes: dict[str, int]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def judge(
    profile: Profile, recording: Recording, samples: Sequence[Sample], changes: Mapping[int, list[float]]
) -> Outcome:
    """`changes` are the moments at which each item was changed, in unix seconds."""
    mine = [request for request in recording.requests if request.kind in IMPORTERS]
    answered = [request for request in mine if request.status == 200 and not request.cause]
    end = max((request.at + request.seconds for request in mine), default=0.0)
    warm_until = end * WARM_UP_SHARE
    # The very first request finds everything cold: as a measure it would excuse the rest.
    warm = p99([request.seconds for request in answered[1:] if request.at < warm_until])
    tail = p99([request.seconds for request in answered if request.at >= warm_until])
    lost = sum(walk.missing for walk in recording.walks)
    lost += sum(len(missed(walk, changes)) for walk in recording.walks if walk.since is not None)
    failed = len(mine) - len(answered)
    share = failed / len(mine) if mine else 1.0
    refused = sum(request.status == 429 for request in mine)
    items = sum(request.items for request in answered)
    checks = [
        Check("walks that came to their end", f"{len(recording.walks):,}", "at least 1", bool(recording.walks)),
        Check("items lost", f"{lost:,}", "0", lost == 0),
        Check("429 to the importer", f"{refused:,}", "0", refused == 0),
        Check(
            "requests of the importer that failed",
            f"{failed:,} of {len(mine):,} ({share:.2%})",
            f"at most {profile.error_budget:.2%}",
            share <= profile.error_budget,
        ),
        Check(
            "p99 of a page, against the warm-up's",
            f"{tail * 1000:.1f} ms against {warm * 1000:.1f} ms",
            f"at most {profile.p99_times:g} times",
            0 < tail <= warm * profile.p99_times,
        ),
        _memory(profile, samples, warm_until),
    ]
    let_in = sum(request.status == 200 for request in recording.requests if request.kind == "WrongToken")
    if any("WrongToken" in stage.users for stage in profile.stages):
        tried = sum(request.kind == "WrongToken" for request in recording.requests)
        checks.append(Check("wrong tokens that were let in", f"{let_in:,} of {tried:,}", "0", tried > 0 == let_in))
    return Outcome(
        checks=checks,
        lost=lost,
        items=items,
        items_per_second=items / end if end else 0.0,
        requests=len(mine),
        finished_walks=len(recording.walks),
        p50_ms=median([request.seconds for request in answered]) * 1000 if answered else 0.0,
        p99_ms=tail * 1000,
        warm_p99_ms=warm * 1000,
        statuses=_statuses(recording.requests),
        causes=dict(Counter(request.cause[:200] for request in mine if request.cause).most_common(5)),
    )


def missed(walk: Walk, changes: Mapping[int, list[float]]) -> list[int]:
    """Items changed between the sync before and the beginning of this one that it did not bring.

    `since` is sent in whole seconds, rounded down. What was committed within the last moment before the walk may be
    stamped before it and seen after it, so that moment is left to the next walk.
    """
    if walk.since is None:
        return []
    first, last = walk.since, walk.began - 0.5
    seen = set(walk.changed)
    return [id for id, moments in changes.items() if id not in seen and any(first <= at < last for at in moments)]


def p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] if ordered else 0.0


def _memory(profile: Profile, samples: Sequence[Sample], warm_until: float) -> Check:
    warm = [sample.memory for sample in samples if sample.at <= warm_until] or [sample.memory for sample in samples[:1]]
    growth = samples[-1].memory - max(warm) if samples else 0.0
    name, rule = "memory since the warm-up", f"at most {profile.growth_megabytes:g} MB more"
    return Check(name, f"{growth:+.0f} MB", rule, bool(samples) and growth <= profile.growth_megabytes)


def _statuses(requests: Sequence[Request]) -> dict[str, dict[int, int]]:
    found: dict[str, Counter[int]] = {}
    for request in requests:
        found.setdefault(request.kind, Counter())[request.status] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}
