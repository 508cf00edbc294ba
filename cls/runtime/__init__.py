"""Files, locks, signals, exit status, random numbers, console messages."""
