"""The agent's place on its machine: environments, the service, installing and upgrading. It knows nothing of models."""
