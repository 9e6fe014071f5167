"""The control plane of a fleet: blob hub, ingest, store, desired states."""
