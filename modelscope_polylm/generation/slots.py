"""Who owns the slots of the KV cache: pages that are handed out as texts grow, and found again by their tokens.

A page holds PAGE positions of one text. Full pages stay findable by the tokens from the text's begin to the page's
end while room lasts, so texts that begin alike share them: system-like prefixes, few-shot prompts, turns of a chat.
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
        # a page is known by its parent's node and its own tokens; nodes are never used twice
        self._nodes: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}
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

    def find(self, ids: Sequence[int]) -> list[int]:
        """Pages that hold the begin of a text, which get one more owner; at least one token is left over."""
        found: list[int] = []
        if not self._reuses:
            return found
        node = ROOT
        for start in range(0, len(ids) - PAGE, PAGE):
            known = self._nodes.get((node, tuple(ids[start : start + PAGE])))
            if known is None:
                break
            node, page = known
            found.append(page)
        for page in found:
            self._owners[page] += 1
            self._idle.pop(page, None)
        return found

    def note(self, pages: Sequence[int], ids: Sequence[int]) -> None:
        """Make a text's full pages findable. Of equal ones the first stays."""
        if not self._reuses:
            return
        node = ROOT
        for index, page in enumerate(pages[: len(ids) // PAGE]):
            key = (node, tuple(ids[index * PAGE : (index + 1) * PAGE]))
            if key not in self._nodes and page not in self._keys:
                self._nodes[key] = (next(self._next_node), page)
                self._keys[page] = key
            if key not in self._nodes:
                return
            node = self._nodes[key][0]

    def forget(self) -> None:
        """Let no page be found any more, as their contents are not what was noted."""
        for page in self._idle:
            heapq.heappush(self._free, page)
        self._idle.clear()
        self._nodes.clear()
        self._keys.clear()

    def release(self, pages: Sequence[int]) -> None:
        """Take an owner from each page; those of a text's end are the first to be used for something else."""
        for page in reversed(pages):
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            if page in self._keys:
                self._idle[page] = None
            else:
                heapq.heappush(self._free, page)

    def _take_one(self) -> int:
        if self._free:
            page = heapq.heappop(self._free)
        else:
            page, _ = self._idle.popitem(last=False)
            del self._nodes[self._keys.pop(page)]
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
