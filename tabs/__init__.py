"""The page: a package for each tab, `form` for forms, `server` for the web server. No training logic, and no torch."""
