"""Fixtures of patches."""

from tests.support.patches import *  # noqa: F403
