#!/bin/sh
# Brings the run directory here, without its checkpoints; with "all" also those.
. "$(dirname "$0")/lib.sh"
options "[all]" "$@"

case $ARGUMENT in
all) set -- ;;
"") set -- '--exclude=^checkpoints/' ;;
*) die "$ARGUMENT is not all" ;;
esac
run mkdir -p "runs/$RUN"
run gcloud storage rsync --recursive "$@" "gs://$BUCKET/runs/$RUN" "runs/$RUN"
