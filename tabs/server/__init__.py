"""What stands between a request and the page: limits, login, delivery, links; and the page's server."""
