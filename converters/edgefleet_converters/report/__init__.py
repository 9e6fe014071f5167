"""The report of a packaging run: one model, written as JSON, Markdown and a page, and shown as a table.

Decides nothing and measures nothing; `build` puts together what the run found.
"""
