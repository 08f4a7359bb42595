#!/usr/bin/env bash
# Contacts between two chains of a protein complex.
set -euo pipefail

# A portal would fill in these lines from the form its user submitted.
pdb=2oob.pdb
chain_1=A
chain_2=B
cutoff=5.0

fail() {
    echo "run.sh: $*" >&2
    exit 1
}

for tool in pdb_selmodel pdb_delhetatm pdb_selaltloc pdb_tidy pdb_splitchain pdb_wc; do
    command -v "$tool" >/dev/null || fail "pdb-tools are not on PATH: no $tool found." \
        "Install them (pip install -r requirements.txt) and start the client with the" \
        "folder of the tools first in PATH."
done
command -v python3 >/dev/null || fail "python3 is not on PATH"

for file in "$pdb" contacts.py; do
    [[ -f $file ]] || fail "$file is missing: it must be sent with the job"
    [[ -s $file ]] || fail "$file is empty"
done
grep -q '^ATOM' "$pdb" || fail "$pdb has no ATOM lines: is it a file in PDB format?"

[[ $chain_1 != "$chain_2" ]] || fail "the two chains must differ, both are $chain_1"

name=${pdb%.pdb}
clean=${name}_clean.pdb

echo "Tidying $pdb"
# Waters, ligands, further models and alternative positions would be counted as contacts too.
pdb_selmodel -1 "$pdb" | pdb_delhetatm | pdb_selaltloc | pdb_tidy >"$clean"
grep -q '^ATOM' "$clean" || fail "$pdb has no ATOM lines in model 1"
pdb_wc "$clean"

chains=$(grep '^ATOM' "$clean" | cut -c 22 | sort -u | paste -s -d ' ')
for chain in "$chain_1" "$chain_2"; do
    [[ $chains == *"$chain"* ]] || fail "$pdb has no chain $chain, only: $chains"
done

pdb_splitchain "$clean"
echo "Looking for contacts between chains $chain_1 and $chain_2"
python3 contacts.py "${name^^}" "${name}_clean_$chain_1.pdb" "${name}_clean_$chain_2.pdb" \
    --cutoff "$cutoff"
cat summary.txt
