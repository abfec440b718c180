"""The ground floor and the front: what accepts, stores and shows events."""

from typing import Any


def create_app() -> Any:
    """`uvicorn --factory service:create_app`, without pulling the front in for whoever needs the ground floor."""
    from service.http.app import create_app as build

    return build()
