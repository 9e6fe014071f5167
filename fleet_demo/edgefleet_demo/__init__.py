"""A whole fleet on one machine: broker, server and agents."""
