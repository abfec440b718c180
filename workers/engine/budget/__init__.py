"""Money: what a call may cost, what it did cost, and where both are kept."""
