"""Scripts for other environments: `environments` runs them by their path, and nothing of ours imports them."""
