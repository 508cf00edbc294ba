"""Side-by-side measurements on the user's own images and machine: `cls bench`."""
