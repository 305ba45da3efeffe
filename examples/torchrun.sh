#!/usr/bin/env bash
# Four processes on this machine; after the loss of one all are started again, up to three times,
# and go on from the last checkpoint. The batch of the preset is shared out among them.
#
#   examples/torchrun.sh [PRESET_OR_YAML] [OPTION ...]
#
# Several machines: add --nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:29500, run it on each,
# and give --out a folder that all of them see.
set -euo pipefail
preset=${1:-fashion-mnist-demo}
shift || true
exec torchrun --nproc-per-node "${PROCESSES:-4}" --max-restarts 3 -m mqvae train "$preset" "$@"
