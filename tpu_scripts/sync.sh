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
if [ "${KEY_FILE:-}" ]; then
    [ -f "$KEY_FILE" ] || die "KEY_FILE=$KEY_FILE is not there"
    everywhere "umask 077; touch ~/vlaa.env; chmod 600 ~/vlaa.env"
    copy "$KEY_FILE" vlaa.env
fi
everywhere "set -e
if $ALIVE; then echo a run goes on here: its code stays; exit 0; fi
rm -rf ~/vlaa/code.new && mkdir -p ~/vlaa/code.new && tar -xzf ~/vlaa.tar.gz -C ~/vlaa/code.new
~/vlaa/venv/bin/pip install -q -e \$HOME/vlaa/code.new'[tpu]'
rm -rf ~/vlaa/code && mv ~/vlaa/code.new ~/vlaa/code
~/vlaa/venv/bin/pip install -q --no-deps -e ~/vlaa/code"
run rm -f "$archive"
