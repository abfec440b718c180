"""The ground floor and the front: what accepts, stores and shows events."""

import os
import sys
from typing import Any


def create_app() -> Any:
    """`uvicorn --factory service:create_app`, without pulling the front in for whoever needs the ground floor."""
    from schemas.catalog import CatalogError
    from service.core.errors import CallboardError
    from service.core.preflight import preflight
    from service.core.settings import load
    from service.embedded import running
    from service.http.app import create_app as build

    try:
        settings = running(load(os.environ))
        preflight(settings, "API")
        return build(settings)
    except (CallboardError, CatalogError) as error:
        sys.exit(f"callboard api: {error}")
