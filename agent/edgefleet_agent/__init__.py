"""The agent: pulls the right variant, runs it, and reports latency and power. Importing it loads nothing heavy."""
