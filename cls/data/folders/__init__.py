"""Image folders: which folders are splits and which are classes."""
