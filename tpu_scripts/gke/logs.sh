#!/bin/sh
# Shows the last lines of every host's log; with "follow" as they grow.
# shellcheck source-path=SCRIPTDIR/.. source=lib.sh
. "$(dirname "$0")/../lib.sh"
options "[follow]" "$@"

case $ARGUMENT in
follow) set -- --follow --max-log-requests="$HOSTS" ;;
"") set -- ;;
*) die "$ARGUMENT is not follow" ;;
esac
run kubectl logs "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" --container=train --prefix \
    --tail=20 "$@"
