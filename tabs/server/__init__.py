"""The page's web server: request checks, rate limits, login, compression, links, uploads."""
