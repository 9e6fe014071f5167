"""edgefleet: package format, wire protocol, selection, server and command line.

Importing this package loads nothing but this line: every room is imported where it is used.
"""

__version__ = "0.1.0"
