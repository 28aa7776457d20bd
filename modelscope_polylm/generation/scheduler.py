"""Decides which requests run: who gets rows and cache slots, who waits, and who is put back when slots run out."""

from __future__ import annotations

import dataclasses
from collections import deque

from modelscope_polylm.generation.outputs import Deliver, TokenCollector
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.slots import PAGE, SlotPool, pages_for, slots_of
from modelscope_polylm.generation.strategies import StrategyKey

MAX_OVERTAKEN = 64
"""Requests that may begin before one that came earlier but does not fit; then all wait for it."""


@dataclasses.dataclass
class Submission:
    """Requests that were handed over together.

    Attributes:
        deliver: takes their deltas.
        partial: whether deltas are wanted before a request's end.
        at_once: most of them that run together; None for no bound.
        running: how many do.
        cancelled: nobody waits for them any more.
    """

    deliver: Deliver
    partial: bool = True
    at_once: int | None = None
    running: int = 0
    cancelled: bool = False


@dataclasses.dataclass(eq=False)
class ActiveRequest:
    """A request on its way through the engine.

    Attributes:
        request, submission, index: what was asked, with what, and its index there.
        order: counts up with each request that comes.
        key: which operations choose its tokens.
        seed: of its random numbers.
        collector: its tokens so far; of a beam search it stays empty.
        rows: the rows that it has; none while it waits.
        prompt_pages: pages of its text, of a single row with the answer's, in the order of positions.
        borrowed: a page of another text that holds the tokens before `cached` of one of its own pages, if any.
        own_pages: for several rows, the pages of each row's answer.
        cached: tokens whose keys and values were found in the cache.
        steps: tokens that were chosen for each row since it began to run, read or not.
        is_complete: whether its search is over and its beams are on their way to the host.
        emitted: tokens that were handed out.
        has_begun: whether its start was told.
        overtaken: requests that began before it although they came later.
    """

    request: Request
    submission: Submission
    index: int
    order: int
    key: StrategyKey
    seed: int
    collector: TokenCollector
    rows: list[int] = dataclasses.field(default_factory=list)
    prompt_pages: list[int] = dataclasses.field(default_factory=list)
    borrowed: list[int] = dataclasses.field(default_factory=list)
    own_pages: list[list[int]] = dataclasses.field(default_factory=list)
    cached: int = 0
    steps: int = 0
    start: int = 0
    is_complete: bool = False
    emitted: int = 0
    has_begun: bool = False
    overtaken: int = 0

    @property
    def is_single(self) -> bool:
        """Whether it has one row, whose answer goes on in its prompt's pages."""
        return self.request.rows_per_prompt == 1

    @property
    def ids(self) -> list[int]:
        """What a row starts from: the prompt, and for a single row the answer so far."""
        if self.request.scored_tokens:
            return list(self.request.prompt[:-1])  # nobody asks what follows the last one
        return [*self.request.prompt, *(self.collector.ids(0) if self.is_single else ())]

    @property
    def length(self) -> int:
        """Tokens of each row after the steps so far, the one that was chosen last included."""
        return self.start + self.steps

    @property
    def may_step(self) -> bool:
        """Whether a further token may be chosen."""
        return not self.is_complete and self.length - len(self.request.prompt) < self.request.max_new_tokens

    @property
    def pages(self) -> list[int]:
        """All pages that it owns."""
        return [*self.prompt_pages, *self.borrowed, *(page for own in self.own_pages for page in own)]

    @property
    def most_pages(self) -> int:
        """Pages that it can come to need."""
        prompt, answer, rows = len(self.request.prompt), self.request.max_new_tokens, self.request.rows_per_prompt
        return pages_for(prompt + answer) if self.is_single else pages_for(prompt) + rows * pages_for(answer)

    def row_slots(self) -> list[list[int]]:
        """The cache slots of each row's positions, as far as there are pages for them."""
        shared = slots_of(self.prompt_pages)
        if self.borrowed:
            tokens = self.cached % PAGE
            shared[self.cached - tokens : self.cached] = slots_of(self.borrowed)[:tokens]
        if self.is_single:
            return [shared]
        return [shared[: len(self.request.prompt)] + slots_of(own) for own in self.own_pages]

    def missing_pages(self) -> int:
        """Pages that each row needs for its next step."""
        if self.is_single:
            return pages_for(self.length) - len(self.prompt_pages)
        return pages_for(self.length - len(self.request.prompt)) - len(self.own_pages[0])


@dataclasses.dataclass(frozen=True)
class Extension:
    """More slots of a row, from a position on."""

    row: int
    position: int
    slots: list[int]


class Scheduler:
    """Requests that wait and requests that run; it never touches the device.

    First come, first served: a request that does not fit is overtaken by at most MAX_OVERTAKEN others.

    Args:
        max_rows: rows that there are.
        pool: the cache's pages.

    Attributes:
        max_rows: rows that may run together, at most as many as there are.
        waiting: in order of arrival.
        running: in the order in which they started.
        put_backs: how often a request lost its slots to another one.
        reused_tokens: tokens of requests that began whose keys and values were found in the cache.
        lacks_pages: whether requests wait for pages.
    """

    def __init__(self, max_rows: int, pool: SlotPool):
        self.max_rows, self.pool = max_rows, pool
        self.waiting: deque[ActiveRequest] = deque()
        self.running: list[ActiveRequest] = []
        self.put_backs, self.reused_tokens = 0, 0
        self.lacks_pages = False
        self._may_admit = False
        self._row_taken = [False] * max_rows

    @property
    def rows(self) -> int:
        """Rows that are in use."""
        return sum(self._row_taken)

    def add(self, active: ActiveRequest) -> None:
        """Let a request wait, those put back before those that came later."""
        at = len(self.waiting)
        while at and self.waiting[at - 1].order > active.order:
            at -= 1
        self.waiting.insert(at, active)
        self._may_admit = True

    def withdraw(self, active: ActiveRequest) -> None:
        """Let a request that waits go."""
        self.waiting.remove(active)
        self._may_admit = True

    def admit(self, tokens: int) -> list[ActiveRequest]:
        """Begin requests with at most so many tokens to compute, at least one if any fits."""
        if not self._may_admit:
            return []
        admitted: list[ActiveRequest] = []
        passed_over: list[ActiveRequest] = []
        self.lacks_pages = False
        for active in list(self.waiting):
            if tokens <= 0 or self.rows >= self.max_rows or len(passed_over) >= MAX_OVERTAKEN:
                break
            limit = active.submission.at_once
            if limit is not None and active.submission.running >= limit:
                continue
            if not self._begin(active, tokens if admitted else None):
                if active.overtaken >= MAX_OVERTAKEN:
                    break
                passed_over.append(active)
                continue
            tokens -= active.start - active.cached
            admitted.append(active)
            self.withdraw(active)
            for earlier in passed_over:
                earlier.overtaken += 1
        # where nothing could begin, nothing can before a request comes or goes or the cache grows
        self._may_admit = bool(admitted)
        return admitted

    def grow(self, pages: int) -> None:
        """Have more pages, a number of `pages`."""
        self.pool.grow(pages)
        self._may_admit = True

    def extend(self, active: ActiveRequest) -> list[Extension] | None:
        """Give a running request the slots of its next step; None if there are too few pages."""
        count = active.missing_pages()
        if count <= 0:
            return []
        if self.pool.available < count * (1 if active.is_single else len(active.rows)):
            return None
        if active.is_single:
            position = PAGE * len(active.prompt_pages)
            pages = self.pool.take(count)
            active.prompt_pages += pages
            return [Extension(active.rows[0], position, slots_of(pages))]
        position = len(active.request.prompt) + PAGE * len(active.own_pages[0])
        extensions = []
        for row, own in zip(active.rows, active.own_pages, strict=True):
            pages = self.pool.take(count)
            own += pages
            extensions.append(Extension(row, position, slots_of(pages)))
        return extensions

    def put_back(self) -> ActiveRequest:
        """Take rows and slots from the request that came last; it waits and is recomputed later from its tokens."""
        last = max(self.running, key=lambda active: active.order)
        self.end(last)
        if not last.is_single:
            last.collector.restart()
        self.put_backs += 1
        self.add(last)
        return last

    def end(self, active: ActiveRequest) -> None:
        """Free what a running request has; its text stays findable."""
        self.running.remove(active)
        active.submission.running -= 1
        if active.is_single and not active.borrowed:
            # the token that was chosen last was never run
            self.pool.note(active.prompt_pages, active.ids[:-1])
        self.pool.release(active.pages)
        for row in active.rows:
            self._row_taken[row] = False
        self._may_admit = True
        active.rows, active.prompt_pages, active.borrowed, active.own_pages = [], [], [], []

    def _begin(self, active: ActiveRequest, tokens: int | None) -> bool:
        """Give rows and slots to a waiting request; False if it does not fit, or has more than `tokens` to compute."""
        rows = self._free_rows(active.request.rows_per_prompt)
        if rows is None:
            return False
        ids, scoring = active.ids, active.request.scoring
        # the token before the first that is scored has to be computed, since its result scores that
        found, cached = self.pool.find(ids) if scoring is None else self.pool.find(ids[: scoring.start], partly=True)
        whole = cached // PAGE
        new = pages_for(len(ids) + (active.is_single and scoring is None)) - whole
        own = 0 if active.is_single else len(rows)
        fits = tokens is None or len(ids) - cached <= tokens
        # some pages are left for the answers that are running
        has_pages = self.pool.available >= new + own + len(self.running)
        if not fits or not has_pages:
            self.lacks_pages |= not has_pages
            self.pool.release(found)
            return False
        self.reused_tokens += cached
        active.prompt_pages, active.borrowed = found[:whole] + self.pool.take(new), found[whole:]
        active.own_pages = [self.pool.take(1) for _ in range(own)]
        active.rows, active.cached, active.start, active.steps = rows, cached, len(ids), 0
        active.is_complete = False
        for row in rows:
            self._row_taken[row] = True
        if not active.borrowed:
            self.pool.note(active.prompt_pages, ids)
        self.running.append(active)
        active.submission.running += 1
        return True

    def _free_rows(self, count: int) -> list[int] | None:
        """The first `count` consecutive free rows."""
        if self.rows + count > self.max_rows:
            return None
        free = 0
        for row, taken in enumerate(self._row_taken):
            free = 0 if taken else free + 1
            if free == count:
                return list(range(row + 1 - count, row + 1))
        return None
