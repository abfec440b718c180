"""From the wire to the committed row: HTTP and streams come in by the same door."""
