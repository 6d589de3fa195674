"""Ratings by people: the page that asks, what was answered, and how far raters agree."""
