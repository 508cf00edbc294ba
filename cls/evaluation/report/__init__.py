"""report.html: all that is known of a run on one page, in one file that needs no network.

``material`` reads the run directory, ``pictures`` and ``nearest`` add photos, ``document`` turns it into words and
numbers, ``charts`` into lines; report.html, .css and .js lay it out. Summary and tables need no JavaScript.
"""
