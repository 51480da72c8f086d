"""The page: a room for each tab, one for what forms share, one for the server. No training logic, and no torch."""
