"""A folder for PYTHONPATH: a worker that is started with it finds a runtime that does what its inputs say."""
