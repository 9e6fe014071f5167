"""Where inputs come from; loaded in the worker process only."""
