"""The page: one file per tab. No training logic, and no torch: it answers while the engine works."""
