"""Documents: kept in Postgres, found by vector and by words."""
