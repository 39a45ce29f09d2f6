"""Who may send now: the rules of the rate, and where their state is kept."""
