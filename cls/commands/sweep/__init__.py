"""Many runs as one experiment: the members of a report's table, running them, and the table with our figures."""
