#!/bin/sh
# Brings the committed code of this checkout onto every host and installs it.
. "$(dirname "$0")/lib.sh"
options "" "$@"

archive=${TMPDIR:-/tmp}/vlaa-$NAME.tar.gz
if [ -z "$DRY" ] && [ -n "$(git -C "$ROOT" status --porcelain)" ]; then
    echo "note: changes that are not committed stay here"
fi
run git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD
copy "$archive" vlaa.tar.gz
everywhere "set -e
rm -rf ~/vlaa/code.new && mkdir -p ~/vlaa/code.new && tar -xzf ~/vlaa.tar.gz -C ~/vlaa/code.new
~/vlaa/venv/bin/pip install -q -e \$HOME/vlaa/code.new'[tpu]'
rm -rf ~/vlaa/code && mv ~/vlaa/code.new ~/vlaa/code
~/vlaa/venv/bin/pip install -q --no-deps -e ~/vlaa/code"
run rm -f "$archive"
