#!/usr/bin/env bash
# Binding affinity of a protein complex, predicted with PRODIGY.
set -euo pipefail

# A portal would fill in this line from the form its user submitted.
pdb=2oob.pdb

fail() {
    echo "run.sh: $*" >&2
    exit 1
}

command -v prodigy >/dev/null || fail "PRODIGY is not on PATH: no prodigy found." \
    "Install it (pip install -r requirements.txt) and start the client with the folder of" \
    "the tool first in PATH."

[[ -f $pdb ]] || fail "$pdb is missing: it must be sent with the job"
[[ -s $pdb ]] || fail "$pdb is empty"
grep -q '^ATOM' "$pdb" || fail "$pdb has no ATOM lines: is it a file in PDB format?"

status=0
prodigy -np "${ORCH_CPUS:-1}" "$pdb" >prodigy.out || status=$?
cat prodigy.out
[[ $status -eq 0 ]] || fail "prodigy ended with status $status on $pdb"

# PRODIGY ends with status 0 even if it could not predict anything.
if grep '^Error' prodigy.out >&2; then
    fail "prodigy made no prediction for $pdb." \
        "It needs two or more chains that touch each other."
fi
sed -n 's|^\[++\] Predicted binding affinity (kcal.mol-1): *\(.*\)|\1 kcal/mol|p' prodigy.out \
    >affinity.txt
[[ -s affinity.txt ]] || fail "prodigy.out has no predicted binding affinity"
