"""The ground floor and the front: what accepts, stores and shows events."""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def create_app() -> Any:
    """`uvicorn --factory service:create_app`, without pulling the front in for whoever needs the ground floor."""
    from schemas.catalog import CatalogError
    from service.embedded import running
    from service.errors import CallboardError
    from service.http.app import create_app as build
    from service.postgres_preflight import check_postgres
    from service.settings import load

    try:
        settings = running(load(os.environ))
        with ThreadPoolExecutor(1) as boot:  # uvicorn's loop may run here, with nothing to do yet
            boot.submit(asyncio.run, check_postgres(settings, "API")).result()
        return build(settings)
    except (CallboardError, CatalogError) as error:
        sys.exit(f"callboard api: {error}")
