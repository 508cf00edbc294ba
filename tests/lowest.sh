#!/usr/bin/env bash
# A clean environment of the lowest versions (tests/lowest.txt), and the tests of what older libraries may break.
# It downloads 3 GB. Run it before you change a floor or use a new name of a library; last result: tests/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
python3 -m venv "$venv"
. "$venv/bin/activate"
pip install --quiet --constraint tests/lowest.txt --editable '.[test]'
[ $# -gt 0 ] || set -- tests/test_lowest.py tests/runs/test_{train,exact,fsdp,survival,offline}.py tests/{distributed,models,transforms} \
    tests/{recipes,tracking} tests/training/test_checkpoint{,_writer}.py tests/data/test_{streaming,sources}.py tests/commands/test_{export,predict}.py
pytest -m 'not soak' "$@"
