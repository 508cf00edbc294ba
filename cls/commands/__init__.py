"""The commands of ``cls``; one command is one file or one folder."""
