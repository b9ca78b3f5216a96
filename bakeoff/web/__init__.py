"""The local site: the catalogue and comparisons in a browser, on this machine alone unless told otherwise."""
