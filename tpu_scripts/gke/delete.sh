#!/bin/sh
# Ends the run, which saves first; node pools and the bucket stay. launch.sh goes on with it.
# shellcheck source-path=SCRIPTDIR/.. source=lib.sh
. "$(dirname "$0")/../lib.sh"
options "" "$@"

run kubectl delete jobset "$NAME" --ignore-not-found
