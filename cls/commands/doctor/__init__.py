"""``cls doctor``: what this machine has and what a run would lack."""
