"""What every part stands on: files, locks, signals, exit status, random numbers, messages."""
