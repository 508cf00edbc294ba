#!/usr/bin/env bash
# A clean environment of the lowest versions (tests/lowest.txt), and the tests of what older libraries may break.
# It downloads 3 GB. Its last result is in tests/README.md; run it before you change a floor or use a new name of a library.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
python3 -m venv "$venv"
. "$venv/bin/activate"
pip install --quiet --constraint tests/lowest.txt --editable '.[test]'
pytest -m 'not soak' "${@:-tests}" --ignore tests/slurm --ignore tests/benchmarks
