"""Who may come in, for what and how often; and what is kept of who did."""
