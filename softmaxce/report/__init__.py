"""Presentation: tables, lines, JSON, charts and pages. The only package that imports rich, jinja2 or matplotlib."""
