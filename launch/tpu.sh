#!/bin/bash
# NAME=x ZONE=us-east5-a TYPE=v6e-16 launch/tpu.sh --config=configs/digits.py --workdir=/mnt/shared/runs/x --mode=train
# Makes a slice of TPUs, copies this checkout to all its hosts, installs it there and runs the command on each: they
# find each other. Run again it goes on, in a slice that is there already. `gcloud compute tpus tpu-vm delete` ends it.
set -euo pipefail
: "${NAME:?the name of the slice}" "${ZONE:?its zone}" "${TYPE:?its accelerator type, as v6e-16}"
tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
copy=$(mktemp) && trap 'rm -f "$copy"' EXIT
tar czf "$copy" --exclude=./.venv --exclude=./.git --exclude=./runs .

tpu describe "$NAME" > /dev/null 2>&1 ||
  tpu create "$NAME" --accelerator-type="$TYPE" --version="${VERSION:-v2-alpha-tpuv6e}" ${SPOT:+--spot}
tpu scp "$copy" "$NAME:score-flow.tgz" --worker=all
tpu ssh "$NAME" --worker=all --command='set -e; mkdir -p score-flow; cd score-flow; tar xzf ../score-flow.tgz
  PATH=$PATH:$HOME/.local/bin # the image has Python 3.10
  command -v python3.13 > /dev/null || { curl -LsSf https://astral.sh/uv/install.sh | sh; uv python install 3.13; }
  [ -d .venv ] || python3.13 -m venv .venv; .venv/bin/pip install --quiet -r requirements-tpu.txt'
# After 75, 76 and a kill every host starts again: all leave together, and meet again.
tpu ssh "$NAME" --worker=all --command="cd score-flow; until .venv/bin/python main.py $(printf '%q ' "$@"); do
  code=\$?; case \$code in 75 | 76 | 137) ;; *) exit \$code ;; esac; done"
