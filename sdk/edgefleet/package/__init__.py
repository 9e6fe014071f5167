"""The package format: an OCI image layout with one manifest per variant, and block digests for transport."""
