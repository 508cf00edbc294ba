"""train.py, killed with all its processes once STEPS steps are done: python -m tests.gpu.killed STEPS RECIPE …"""

import sys

import train
from tests.harness.faults import plant

if __name__ == "__main__":
    argv = sys.argv[2:]
    plant(f"SIGKILL@0:step:{int(sys.argv[1]) + 1}", 0, argv)
    train.main(argv)
