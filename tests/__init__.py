"""The tests are a package of their own, so that another `tests` on the path is never meant."""
