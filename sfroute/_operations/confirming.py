"""Confirming claims: a pod asks the store whether they are still its own, whenever it may have missed something.

One script answers for one claim, mends what the store has lost of it, and reads its link on the pod's lane: from then
on the server pushes the link's changes there. It may be sent as often as one likes, so trouble of any kind means only
that a claim is still due. The reasons for which a claim is due:

1. it was just made, and nobody watches its link yet;
2. the server said that its link, the uid's hash or the claim record has changed or was evicted;
3. the lane was lost, fell silent, was re-pointed, or said that everything has changed;
4. its turn in the round has come: ``confirm_every`` where the server pushes, ``confirm_every_untracked`` elsewhere;
5. the lease ran out, and a heartbeat has been stored again;
6. its slot is on its way: the lane that is to watch its link cannot read it yet.

A claim that is due for longer than a lease is not sure any more: its primary does not answer this pod, and others may
have moved the link there, though heartbeats, which another primary stores, go on.

Due claims travel in batches, a few batches at a time for each lane, so that lookups find room beside them.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import ceil, inf
from typing import Final

from .._commands.command import script_command
from .._contract.claims import Outcome
from .._contract.error_replies import Kind
from .._contract.keys import claim_key, link_key, link_prefix, tag_and_slot, tagged_claim_keys
from .._contract.replies import claim_outcome
from .._contract.scripts import get_script
from .._lookups.lane import Lane
from .._net.connection import ReplyError, encode
from ..errors import RouterClosed, SfrouteError
from ..telemetry.logs import log_fields
from ..telemetry.records import of_no_call
from .claims import ClaimTable, Held, Reason
from .engine import Parts
from .requests import Requests

__all__ = ["Confirmer"]

BATCH: Final = 128
"""Claims confirmed by one request: a server is busy with them for a millisecond."""
BATCHES: Final = 2
"""Requests under way on one lane."""
AT_ONCE: Final = 2000
"""Claims looked at in one turn of the event loop."""
RETRY_SECONDS: Final = 0.25
"""Until what met trouble is tried again."""
MAX_PER_SECOND: Final = 400
"""Where the server pushes, a round of very many claims takes longer: it looks for what should never be, and is not to
cost a pod that idles a hundredth of a processor."""
SPARE: Final = 64
"""So many ended claims wait for their turn in a round, beside as many as are held."""
TICK_SECONDS: Final = 0.1
"""Between two steps of a round, at least."""
MOVING_SECONDS: Final = 1.0
"""Between two confirmations of a claim whose slot is on its way to another node."""


class _Batch:
    """Claims confirmed together, a ``channel.Request``."""

    __slots__ = (
        "_queue",
        "commands",
        "epoch",
        "generation",
        "left",
        "payload",
        "sent_at",
    )

    def __init__(self, queue: _Queue, held: list[Held], payload: bytes, generation: int) -> None:
        self._queue = queue
        self.payload = payload
        self.commands = len(held)
        self.generation = generation
        self.epoch = queue.lane.epoch
        self.left = deque(held)  # those without a reply
        self.sent_at = -inf

    def abandoned(self, _now: float) -> bool:
        """Never: who waits is counted."""
        return False

    def on_reply(self, reply: object) -> None:
        """In wire order with the pushes: it is newer than every push before it, and older than every one behind it.

        So it counts now: kept until all replies are there, it would undo what a push between them has said.
        """
        self._queue.confirmer.answered(self._queue, self, self.left.popleft(), reply)

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """Asking again does no harm."""
        self._queue.confirmer.unanswered(self._queue, self)


class _Queue:
    """What waits for one lane."""

    __slots__ = ("confirmer", "flush_scheduled", "lane", "under_way", "waiting")

    def __init__(self, confirmer: Confirmer, lane: Lane) -> None:
        self.confirmer = confirmer
        self.lane = lane
        self.waiting: deque[Held] = deque()
        self.under_way = 0
        self.flush_scheduled = False


class Confirmer:
    """See the module's docstring. A ``LinkWatcher`` of the lookups' lanes.

    Args:
        parts: the open engine.
        table: the claims.
        place: namespace, service, pod and life.
        every: seconds between two confirmations of a claim where the server pushes, and where it does not.
        on_lost: called with a claim that is lost, the reason and the owner.
        log: where it warns.

    Attributes:
        requests: what the pod is asked beside the claims.
        confirmations: how many claims were confirmed.
        mended: outcome -> how many claims the store had lost something of.
    """

    def __init__(
        self,
        parts: Parts,
        table: ClaimTable,
        place: tuple[str, str, int, str],
        every: tuple[float, float],
        on_lost: Callable[[Held, Reason, int | None], None],
        log: logging.Logger,
    ) -> None:
        self._parts = parts
        self._table = table
        self.requests = Requests(parts, table, place)
        self._namespace, self._service, self._pod, self._life = place
        self._every = every
        self._on_lost = on_lost
        self._log = log
        self._loop = parts.loop
        self._queues: dict[Lane, _Queue] = {}
        self._later: list[Held] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._round: deque[Held] = deque()
        self._round_timer: asyncio.TimerHandle | None = None
        self._rescan_wanted = False
        self._rescanning: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._warned = False
        self._closed = False
        self.confirmations = 0
        self.mended: dict[Outcome, int] = {"restored": 0, "claimed": 0}
        # EVALSHA sha 3 link hash claim service pod life fence: all but the keys and the fence is always the same.
        head = encode("EVALSHA", get_script("statefulConfirmClaim").sha, "3").partition(b"\r\n")[2]
        self._head = b"*10\r\n" + head
        tail = encode(self._service, str(self._pod), self._life)
        self._tail = tail.partition(b"\r\n")[2]
        parts.dispatch.watchers.append(self)

    def close(self) -> None:
        """Confirm nothing any more."""
        self._closed = True
        self.requests.close()
        if self in self._parts.dispatch.watchers:
            self._parts.dispatch.watchers.remove(self)
        for timer in (self._retry_timer, self._round_timer):
            if timer is not None:
                timer.cancel()
        if self._rescanning is not None:
            self._rescanning.cancel()
        for task in self._asking:
            task.cancel()

    @property
    def settled(self) -> bool:
        """Nothing is due: all claims are confirmed, by all that is known of the store."""
        busy = self._rescanning is not None or self._later or self._asking
        return not busy and not any(
            queue.waiting or queue.under_way for queue in self._queues.values()
        )

    # What makes a claim due

    def begin(self, held: Held) -> None:
        """A claim was just made."""
        if len(self._round) > 2 * len(self._table) + SPARE:
            # Users who stay briefly would leave a whole round of ended claims here.
            self._round = deque(one for one in self._round if not one.over)
        self._round.append(held)
        self.add(held)
        if self._round_timer is None:
            self._schedule_round()

    def add(self, held: Held) -> None:
        """Confirm this claim as soon as may be."""
        if held.due_since is not None or held.over or self._closed:
            return
        held.due_since = self._table.clock()
        self._enqueue(held)

    def confirm_all(self) -> None:
        """Confirm every claim that is doubtful, or that no lane watches, in the background; the newest first."""
        self._rescan_wanted = True
        if self._rescanning is None and not self._closed:
            self._rescanning = self._loop.create_task(self._rescan(), context=of_no_call())

    def link_changed(self, namespace: str, uid: str, service: str) -> None:
        """``LinkWatcher``: the server says that a link has changed."""
        if service != self._service or namespace != self._namespace:
            return
        held = self._table.get(uid)
        # Before it was read for the first time, it is this pod's own claim that is pushed.
        if held is not None and held.stretch is not None:
            self._table.doubt(held)
            self.add(held)

    def hash_changed(self, namespace: str, uid: str) -> None:
        """``LinkWatcher``: the hash of the uid has changed or was evicted: it may need mending.

        The link stands, so the claim stays sure until the store says otherwise.
        """
        held = self._table.get(uid) if namespace == self._namespace else None
        if held is not None and held.stretch is not None:
            self.add(held)

    def claim_changed(self, namespace: str, uid: str, service: str) -> None:
        """``LinkWatcher``: as for the hash; or the record was written again, because the pod is asked for the uid."""
        if service != self._service:
            return
        self.hash_changed(namespace, uid)
        held = self._table.get(uid) if namespace == self._namespace else None
        if held is not None:
            self.requests.look(held)

    def lanes_changed(self) -> None:
        """``LinkWatcher``: a lane came up, was lost or re-pointed, or said that everything has changed."""
        self.confirm_all()

    async def _rescan(self) -> None:
        while self._rescan_wanted:
            self._rescan_wanted = False
            with suppress(RouterClosed):
                self._parts.dispatch.connect_to_all()
            waiting: list[Held] = []
            for queue in self._queues.values():
                waiting += queue.waiting
                queue.waiting.clear()
            # Lanes of nodes that serve nothing any more.
            self._queues = {lane: queue for lane, queue in self._queues.items() if queue.under_way}
            for number, held in enumerate(waiting, 1):
                self._enqueue(held)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            for number, held in enumerate(list(self._table), 1):
                stretch = held.stretch
                if (
                    stretch is None
                    or stretch.healthy_until == -inf
                    or held.generation != self._table.generation
                ):
                    self.add(held)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
        self._rescanning = None

    # Rounds

    def _seconds_of_round(self) -> float:
        tracked, untracked = self._every
        lanes = [queue.lane for queue in self._queues.values()]
        if lanes and all(lane.tracked for lane in lanes):
            return max(tracked, len(self._round) / MAX_PER_SECOND)
        return untracked

    def _schedule_round(self) -> None:
        count = len(self._round)
        self._round_timer = None
        if not count or self._closed:
            return
        seconds = self._seconds_of_round()
        pause = max(TICK_SECONDS, seconds / count)
        self._round_timer = self._loop.call_later(pause, self._turn, ceil(count * pause / seconds))

    def _turn(self, count: int) -> None:
        """The turn of so many claims has come."""
        tracked = all(queue.lane.tracked for queue in self._queues.values())
        for _ in range(min(count, len(self._round))):
            held = self._round.popleft()
            if not held.over:
                self._round.append(held)
                self.add(held)
                if not tracked:
                    # No push tells of them.
                    self.requests.look(held)
        self._schedule_round()

    # Sending

    def _enqueue(self, held: Held) -> None:
        _, slot = tag_and_slot(self._namespace, held.claim.uid)
        try:
            lane = self._parts.dispatch.lane_of(slot)
        except RouterClosed:
            return
        if lane is None:
            self._parts.topology.refresh_soon()
            self._try_later(held)
            return
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = _Queue(self, lane)
        queue.waiting.append(held)
        if not queue.flush_scheduled:
            queue.flush_scheduled = True
            self._loop.call_soon(self._flush, queue)

    def _flush(self, queue: _Queue) -> None:
        queue.flush_scheduled = False
        lane = queue.lane
        while queue.waiting and queue.under_way < BATCHES and not self._closed:
            if lane.channel.connection is None:
                # What comes of it, ``lanes_changed`` tells; or nothing does, and it is tried again.
                lane.channel.probe()
                self._parts.topology.refresh_soon(lane.address)
                self._arm_retry()
                return
            batch: list[Held] = []
            payloads: list[bytes] = []
            while queue.waiting and len(batch) < BATCH:
                held = queue.waiting.popleft()
                if held.over:
                    continue
                batch.append(held)
                payloads.append(self._payload(held))
            if batch:
                queue.under_way += 1
                lane.channel.submit(
                    _Batch(queue, batch, b"".join(payloads), self._table.generation)
                )

    def _payload(self, held: Held) -> bytes:
        claim = held.claim
        tag, _ = tag_and_slot(self._namespace, claim.uid)
        fence = b"%d" % claim.fence
        return b"%b%b%b$%d\r\n%b\r\n" % (
            self._head,
            tagged_claim_keys(tag, self._service),
            self._tail,
            len(fence),
            fence,
        )

    def _try_later(self, held: Held) -> None:
        self._later.append(held)
        self._arm_retry()

    def _arm_retry(self) -> None:
        if self._retry_timer is None and not self._closed:
            self._retry_timer = self._loop.call_later(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self._doubt_overdue()
        later, self._later = self._later, []
        for held in later:
            if not held.over:
                self._enqueue(held)
        for queue in list(self._queues.values()):
            if queue.waiting:
                self._flush(queue)

    def _doubt_overdue(self) -> None:
        too_long = self._table.clock() - self._table.lease
        for waiting in (self._later, *(queue.waiting for queue in self._queues.values())):
            for held in waiting:
                if held.due_since is not None and held.due_since < too_long:
                    self._table.doubt(held)

    # Answers

    def unanswered(self, queue: _Queue, batch: _Batch) -> None:
        """Those without an answer are still due."""
        queue.under_way -= 1
        if self._closed:
            return
        self._later += batch.left
        self._arm_retry()

    def answered(self, queue: _Queue, batch: _Batch, held: Held, reply: object) -> None:
        """One of them has its answer."""
        is_last = not batch.left
        if is_last:
            queue.under_way -= 1
        if self._closed:
            return
        if isinstance(reply, ReplyError):
            self._refused(queue.lane, held, reply)
        else:
            self._decide(held, reply, batch, watched=batch.epoch is queue.lane.epoch)
        if is_last and queue.waiting:
            self._flush(queue)

    def _decide(self, held: Held, reply: object, batch: _Batch | None, watched: bool) -> None:
        held.due_since = None
        if held.over:
            return
        found = claim_outcome(reply)
        if found is None:
            self._is_damaged(held, "an unknown reply")
            return
        outcome, owner = found
        if outcome == "moved" or outcome == "removed" or outcome == "superseded":
            held.stretch = None
            self._on_lost(held, outcome, owner)
            return
        self.confirmations += 1
        self._table.confirmed(held, batch.generation if batch else self._table.generation)
        if outcome != "mine":
            # The script has written to the link, which ends the watching that its reading began.
            self.mended[outcome] += 1
            watched = False
        held.stretch = batch.epoch if batch and watched else None
        if batch and (not watched or held.generation != self._table.generation):
            self.add(held)

    def _refused(self, lane: Lane, held: Held, error: ReplyError) -> None:
        failure = self._parts.topology.heed(error, lane.address)
        if failure.kind is Kind.MOVED:
            self._enqueue(held)
        elif failure.kind is Kind.ASK:
            self._ask(held)
        elif failure.kind is Kind.NOSCRIPT:
            # Behind this one the others of the lane find it.
            self._ask(held, watch=True)
        elif failure.kind is Kind.CORRUPT or failure.kind is Kind.FATAL:
            held.due_since = None
            self._is_damaged(held, failure.code)
        else:
            self._parts.topology.refresh_soon()
            self._try_later(held)

    def _is_damaged(self, held: Held, what: str) -> None:
        """Nobody can tell whose it is: the next round asks again."""
        self._table.doubt(held)
        if not self._warned:
            self._warned = True
            self._log.warning(
                "a claim of pod %d of service %r cannot be confirmed (%s); the pod does not act for it",
                self._pod,
                self._service,
                what,
                extra=log_fields(self._namespace, self._service, self._pod, reason=what),
            )

    def _ask(self, held: Held, *, watch: bool = False) -> None:
        """The long way, which every other command goes: for a slot on its way, and for a node without the script.

        The server pushes no change of what was not read through the lane: so the claim stays due until the lane
        itself has answered. ``watch``: it can answer at once.
        """
        task = self._loop.create_task(self._ask_store(held, watch), context=of_no_call())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask_store(self, held: Held, watch: bool) -> None:
        uid = held.claim.uid
        generation, stretch = self._table.generation, held.stretch
        asked = self._table.clock()
        names = (self._namespace, uid, self._service)
        try:
            reply = await self._parts.commands.run(
                script_command(
                    "confirm",
                    get_script("statefulConfirmClaim"),
                    [link_key(*names), link_prefix(self._namespace, uid), claim_key(*names)],
                    [self._service, self._pod, self._life, held.claim.fence],
                    write=True,
                    repeatable=True,
                )
            )
        except SfrouteError:
            if not self._closed:
                self._try_later(held)
            return
        if generation == self._table.generation and held.stretch is stretch:
            self._decide(held, reply, None, watched=False)
            held.due_since = asked
            if not watch and not held.over:
                await asyncio.sleep(MOVING_SECONDS)
        # Else the answer may be older than what was heard meanwhile.
        if not held.over:
            self._enqueue(held)
