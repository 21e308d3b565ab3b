"""How often a rolling update moves users: the policies themselves, in a simulation without a store.

    python benchmarks/rolling_update.py

Pods are replaced one after the other. Users of a pod move when it goes, and are placed by the policy on the pods that
are there just then. With a surge the new pod comes before the old one goes; without, it comes afterwards, under the
same id, and users whose pod is away are moved.
"""

from __future__ import annotations

import random
from collections import Counter

from sfroute import RUNNING, NewestVersion, Pod, Policy, PowerOfTwoChoices
from sfroute._pods.policies import candidates

USERS, PODS, RUNS = 600, 6, 20


def update(policy: Policy, *, surge: bool, rng: random.Random) -> Counter[int]:
    """Moves -> users who moved that often."""
    versions = dict.fromkeys(range(PODS), "1.9")
    where = {f"u{user}": user % PODS for user in range(USERS)}
    moves = dict.fromkeys(where, 0)
    for old in rng.sample(range(PODS), PODS):
        del versions[old]
        if surge:
            versions[PODS + old] = "1.10"
        held = Counter(where.values())
        for uid in [uid for uid, pod in where.items() if pod == old]:
            pods = [
                Pod(pod, RUNNING, float(held[pod]), extra={"labels": {"version": version}})
                for pod, version in versions.items()
            ]
            where[uid] = policy.rank(uid, candidates(pods, {}, None))[0]
            held[where[uid]] += 1
            moves[uid] += 1
        if not surge:
            versions[old] = "1.10"
    return Counter(moves.values())


def main() -> None:
    print("| policy | new pods | moved once | twice | more often |\n|---|---|---|---|---|")
    for name, make in (
        ("PowerOfTwoChoices()", PowerOfTwoChoices),
        ("NewestVersion()", lambda rng: NewestVersion(then=PowerOfTwoChoices(rng))),
    ):
        for surge in (True, False):
            total: Counter[int] = Counter()
            for seed in range(RUNS):
                rng = random.Random(seed)
                total.update(update(make(rng), surge=surge, rng=rng))
            share = {moves: users / RUNS for moves, users in total.items()}
            often = sum(users for moves, users in share.items() if moves > 2)
            print(
                f"| `{name}` | {'before' if surge else 'after'} the old one "
                f"| {share.get(1, 0):.0f} | {share.get(2, 0):.0f} | {often:.0f} |"
            )


if __name__ == "__main__":
    main()
