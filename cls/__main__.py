"""``python -m cls``, and ``accelerate launch -m cls`` for several processes: the ``cls`` command."""

from cls.cli import main

main()
