"""Rows and slots: after any events none is lost or given twice, and whoever waits gets its turn."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenCollector
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.scheduler import MAX_OVERTAKEN, ActiveRequest, Scheduler, Submission
from modelscope_polylm.generation.slots import PAGE, SlotPool, pages_for, slots_of
from modelscope_polylm.generation.strategies import StrategyKey
from tests.generation.models import IdBounds

VOCABULARY = 50


def request_of(prompt: list[int], limit: int, order: int, rows: int = 1, at_once: int | None = None) -> ActiveRequest:
    options = GenerationOptions(num_beams=rows, eos_token_id=VOCABULARY - 1)
    request = Request(prompt, limit, 0, options)
    collector = TokenCollector(request, IdBounds(VOCABULARY))
    submission = Submission(lambda item: None, at_once=at_once)
    return ActiveRequest(request, submission, 0, order, StrategyKey.of(request, VOCABULARY), 0, collector)


def check(scheduler: Scheduler) -> None:
    """Every row and page belongs to whom it is said to, and to nobody else unless it is a shared prefix."""
    rows = [row for active in scheduler.running for row in active.rows]
    assert len(set(rows)) == len(rows) == scheduler.rows
    owners: dict[int, int] = {}
    for active in scheduler.running:
        assert len(set(active.pages)) == len(active.pages)
        for page in active.pages:
            owners[page] = owners.get(page, 0) + 1
        for slots in active.row_slots():
            assert len(set(slots)) == len(slots) and 0 not in slots
        own = [page for pages in active.own_pages for page in pages]
        assert all(owners[page] == 1 for page in own)
    pool = scheduler.pool
    assert {page: count for page, count in enumerate(pool._owners) if count} == owners
    unowned = [*pool._free, *pool._idle]
    assert sorted([*unowned, *owners]) == list(range(pool.pages))
    assert pool.available == len(unowned) and pool.used == len(owners)


class Simulation:
    """Random requests, steps, ends and cancellations."""

    def __init__(self, seed: int, rows: int, pages: int):
        self.random = random.Random(seed)
        self.scheduler = Scheduler(rows, SlotPool(pages))
        self.order = 0
        self.ended = 0

    def add(self) -> None:
        beginning = [1] * PAGE * self.random.randrange(3)
        prompt = beginning + [self.random.randrange(VOCABULARY) for _ in range(self.random.randrange(1, 40))]
        rows = self.random.choice([1, 1, 1, 2, 4])
        active = request_of(prompt, self.random.randrange(1, 200), self.order, rows, self.random.choice([None, 1]))
        self.order += 1
        if active.most_pages <= self.scheduler.pool.pages:
            self.scheduler.add(active)

    def step(self) -> None:
        for active in self.scheduler.admit(self.random.choice([10, 100, 1000])):
            self.choose(active)
        for active in [active for active in self.scheduler.running if active.may_step]:
            while active in self.scheduler.running and self.scheduler.extend(active) is None:
                self.scheduler.put_back()
            if active in self.scheduler.running:
                self.choose(active)

    def choose(self, active: ActiveRequest) -> None:
        active.steps += 1
        if active.is_single:
            active.collector.take(0, self.random.randrange(VOCABULARY - 1))
        if not active.may_step or self.random.random() < 0.02:
            self.scheduler.end(active)
            self.ended += 1

    def cancel(self) -> None:
        if self.scheduler.running:
            self.scheduler.end(self.random.choice(self.scheduler.running))


def test_no_slot_is_lost_or_doubled_after_ten_thousand_events():
    simulation = Simulation(0, rows=12, pages=45)
    for _ in range(10_000):
        event = simulation.random.choices(["add", "step", "cancel"], [3, 6, 1])[0]
        getattr(simulation, event)()
        check(simulation.scheduler)
    scheduler = simulation.scheduler
    assert simulation.ended > 500 and scheduler.put_backs > 25 and scheduler.reused_tokens > 1000
    for _ in range(20_000):
        if not (scheduler.waiting or scheduler.running):
            break
        simulation.step()
    check(scheduler)
    assert not scheduler.waiting and not scheduler.running and scheduler.pool.used == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(4, 20), pages=st.integers(8, 90))
def test_everything_ends_whatever_comes(seed, rows, pages):
    simulation = Simulation(seed, rows, pages)
    for _ in range(25):
        simulation.add()
        simulation.step()
    for _ in range(5000):
        if not (simulation.scheduler.waiting or simulation.scheduler.running):
            break
        simulation.step()
        check(simulation.scheduler)
    assert not simulation.scheduler.waiting and simulation.scheduler.pool.used == 0


def test_first_come_first_served_and_a_bound_on_overtaking():
    scheduler = Scheduler(4, SlotPool(1000))
    running = request_of([1], 9, 0)
    scheduler.add(running)
    assert scheduler.admit(100) == [running]
    large = request_of([2], 9, 1, rows=4)
    scheduler.add(large)
    for order in range(2, 2 + MAX_OVERTAKEN + 5):
        small = request_of([3], 9, order)
        scheduler.add(small)
        began = scheduler.admit(100)
        if order < 2 + MAX_OVERTAKEN:
            assert began == [small]
            scheduler.end(small)
        else:
            assert began == []
    scheduler.end(running)
    assert scheduler.admit(100) == [large]


def test_the_youngest_is_put_back_and_comes_before_those_that_came_later():
    scheduler = Scheduler(8, SlotPool(8))
    actives = [request_of([order] * 10, 40, order) for order in range(3)]
    for active in actives:
        scheduler.add(active)
    assert scheduler.admit(100) == actives
    later = request_of([9], 4, 7)
    scheduler.add(later)
    assert scheduler.put_back() is actives[2]
    assert list(scheduler.waiting) == [actives[2], later]


def test_prefills_keep_to_their_budget():
    scheduler = Scheduler(8, SlotPool(100))
    for order in range(4):
        scheduler.add(request_of([order] * 30, 4, order))
    assert len(scheduler.admit(70)) == 2
    # at least one, however small the budget
    assert len(scheduler.admit(1)) == 1


@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 1])
def test_prefixes_are_found_in_full_pages_and_leave_a_token(length):
    pool, ids = SlotPool(20), list(range(100, 100 + length))
    pages = pool.take(pages_for(length))
    pool.note(pages, ids)
    assert pool.find(ids) == (pages[: (length - 1) // PAGE], (length - 1) // PAGE * PAGE)
    assert pool.find([*ids, 7]) == (pages[: length // PAGE], length // PAGE * PAGE)
    assert pool.find([0, *ids]) == ([], 0)


def test_the_least_recently_used_text_goes_first():
    pool = SlotPool(4)
    texts = [[text] * PAGE for text in range(3)]
    for text in texts:
        pages = pool.take(1)
        pool.note(pages, text)
        pool.release(pages)
    pool.release(pool.find([*texts[0], 1])[0])
    pool.take(2)  # the free page, then that of text 1
    assert [bool(pool.find([*text, 1])[0]) for text in texts] == [True, False, True]


def test_slots_follow_the_scratch_slot():
    assert slots_of([0, 2]) == [*range(1, PAGE + 1), *range(2 * PAGE + 1, 3 * PAGE + 1)]


def test_the_start_of_a_page_is_found_while_it_is_there():
    pool, ids = SlotPool(4), list(range(100, 100 + PAGE + 4))
    pages = pool.take(2)
    pool.note(pages, ids)
    assert pool.find([*ids[:10], 1, 2]) == ([], 0)
    assert pool.find([*ids[:10], 1, 2], partly=True) == (pages[:1], 10)
    assert pool.find(ids[:10], partly=True) == (pages[:1], 9)
    assert pool.find([*ids[: PAGE + 3], 1], partly=True) == (pages, PAGE + 3)
    for owned in (pages[:1], pages[:1], pages, pages):
        pool.release(owned)
    # a full page stays, one that is not full goes with its last owner
    assert pool.find([*ids[: PAGE + 3], 1], partly=True) == (pages[:1], PAGE)
    pool.forget()
    assert pool.find([*ids[:10], 1], partly=True) == ([], 0)


def test_a_page_that_is_used_again_is_not_found_by_its_start():
    pool, ids = SlotPool(1), list(range(100, 100 + PAGE))
    pages = pool.take(1)
    pool.note(pages, ids)
    pool.release(pages)
    pool.take(1)
    assert pool.find([*ids[:10], 1], partly=True) == ([], 0)
