"""Time-outs of the product that are not what a test is about."""

import pytest


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict on a key is held for a moment, and no longer waited for. test_keys.py has the real times."""
    monkeypatch.setattr("service.access.keys.HELD_S", 0.2)
    monkeypatch.setattr("service.access.keys.LOOK_UP_TIMEOUT_S", 0.5)
