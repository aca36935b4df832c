#!/bin/sh
# Converts CHECKPOINT on the first host, once, to SHARED/checkpoints: hosts then read only their part.
. "$(dirname "$0")/lib.sh"
options "" "$@"

target=$SHARED/checkpoints/$(basename "${CHECKPOINT:?CHECKPOINT is not set}")
first "set -e
$KEYS
if [ -f $target/vlaa_jax.json ]; then echo $target is there already; exit 0; fi
rm -rf $target
cd ~/vlaa/code && ~/vlaa/venv/bin/python -m converters hf-to-jax $CHECKPOINT $target"
