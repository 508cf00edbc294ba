"""``python -m cls``, and ``accelerate launch -m cls`` for several processes: the ``cls`` command."""

from cls.commands.main import main

main()
