"""The ground floor and the front: what accepts, stores and shows events."""

import sys
from typing import Any


def create_app() -> Any:
    """`uvicorn --factory service:create_app`, without pulling the front in for whoever needs the ground floor."""
    from schemas.catalog import CatalogError
    from service.errors import CallboardError
    from service.http.app import create_app as build

    try:
        return build()
    except (CallboardError, CatalogError) as error:
        sys.exit(f"callboard api: {error}")
