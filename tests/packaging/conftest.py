"""Fixtures of the packages' tests."""

from __future__ import annotations

from tests.packaged import package, short_corpus
