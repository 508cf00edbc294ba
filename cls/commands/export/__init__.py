"""A run's best network for programs without this package, compared with it on real images."""
