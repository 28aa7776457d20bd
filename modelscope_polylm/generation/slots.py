"""Who owns the slots of the KV cache: pages that are handed out as texts grow, and found again by their tokens.

A page holds PAGE positions of one text. Full pages stay findable by the tokens from the text's start to the page's
end while room lasts, so texts that start alike share them: system-like prefixes, few-shot prompts, turns of a chat.
Texts that nothing follows, as those of a question with several answers, also share the start of a page.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Sequence

from modelscope_polylm.network.kv_cache import SCRATCH_SLOT

PAGE = 16
"""Slots of a page."""
ROOT = 0
"""Parent of a text's first page."""


class SlotPool:
    """Pages with counted owners.

    Args:
        pages: how many there are at first.
        reuse_prefixes: keep full pages findable after their owners have ended.

    Attributes:
        pages: how many there are.
    """

    def __init__(self, pages: int, reuse_prefixes: bool = True):
        self.pages = pages
        self._reuses = reuse_prefixes
        self._free = list(range(pages))  # a heap: lowest first, so that one text alone lies in one piece
        self._owners = [0] * pages
        # a page is known by its parent's node and its own tokens; full ones have nodes, which are never used twice
        self._nodes: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._latest: dict[int, int] = {}  # of each parent the page that was noted last, full or not
        self._idle: OrderedDict[int, None] = OrderedDict()  # known pages without owners, least recently used first
        self._next_node = itertools.count(ROOT + 1)

    @property
    def available(self) -> int:
        """Pages that could be handed out now."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that have owners."""
        return self.pages - self.available

    def grow(self, pages: int) -> None:
        """Add pages, up to a number of `pages`."""
        for page in range(self.pages, pages):
            heapq.heappush(self._free, page)
        self._owners += [0] * (pages - self.pages)
        self.pages = pages

    def take(self, count: int) -> list[int]:
        """Hand out pages; there must be as many available."""
        return [self._take_one() for _ in range(count)]

    def find(self, ids: Sequence[int], partly: bool = False) -> tuple[list[int], int]:
        """Pages that hold the start of a text, which get one more owner, and how many of its tokens they hold.

        At least one token is left over. Of the last page only the start may fit, if that is wanted `partly`.
        """
        found: list[int] = []
        if not self._reuses:
            return found, 0
        node = ROOT
        for start in range(0, len(ids) - PAGE, PAGE):
            known = self._nodes.get((node, tuple(ids[start : start + PAGE])))
            if known is None:
                break
            node, page = known
            found.append(page)
        tokens = PAGE * len(found)
        if partly and node in self._latest:
            page = self._latest[node]
            if alike := _common(ids[tokens:-1], self._keys[page][1]):
                tokens += alike
                found.append(page)
        for page in found:
            self._owners[page] += 1
            self._idle.pop(page, None)
        return found, tokens

    def note(self, pages: Sequence[int], ids: Sequence[int]) -> None:
        """Make a text's full pages findable, and the start of its last one while that has owners.

        Of equal pages the first stays.
        """
        if not self._reuses:
            return
        node = ROOT
        for index, page in enumerate(pages[: pages_for(len(ids))]):
            key = (node, tuple(ids[index * PAGE : (index + 1) * PAGE]))
            if key not in self._nodes and not self._is_full(page):
                self._drop_key(page)
                self._keys[page], self._latest[node] = key, page
                if self._is_full(page):
                    self._nodes[key] = (next(self._next_node), page)
            if key not in self._nodes:
                return
            node = self._nodes[key][0]

    def forget(self) -> None:
        """Let no page be found any more, as their contents are not what was noted."""
        for page in self._idle:
            heapq.heappush(self._free, page)
        self._idle.clear()
        for known in (self._nodes, self._keys, self._latest):
            known.clear()

    def release(self, pages: Sequence[int]) -> None:
        """Take an owner from each page; those of a text's end are the first to be used for something else."""
        for page in reversed(pages):
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            if self._is_full(page):
                self._idle[page] = None
            else:
                self._drop_key(page)
                heapq.heappush(self._free, page)

    def _is_full(self, page: int) -> bool:
        """Whether a page is known by all the tokens that it can hold."""
        return page in self._keys and len(self._keys[page][1]) == PAGE

    def _drop_key(self, page: int) -> None:
        """Let a page not be found any more."""
        if page in self._keys:
            key = self._keys.pop(page)
            self._nodes.pop(key, None)
            if self._latest.get(key[0]) == page:
                del self._latest[key[0]]

    def _take_one(self) -> int:
        if self._free:
            page = heapq.heappop(self._free)
        else:
            page, _ = self._idle.popitem(last=False)
            self._drop_key(page)
        self._owners[page] = 1
        return page


def slots_of(pages: Sequence[int]) -> list[int]:
    """The slots of some pages, in order."""
    first = SCRATCH_SLOT + 1
    return [first + page * PAGE + offset for page in pages for offset in range(PAGE)]


def slot_count(pages: int) -> int:
    """Slots of a cache with so many pages, the scratch slot included."""
    return SCRATCH_SLOT + 1 + pages * PAGE


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))
