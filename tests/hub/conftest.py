"""Fixtures of the hub's tests."""

from __future__ import annotations

from tests.packaged import package
