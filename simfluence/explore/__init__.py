"""A page that answers what-ifs by hand: one HTML file, in which everything is computed."""

from simfluence.explore.page import write_page

__all__ = ["write_page"]
