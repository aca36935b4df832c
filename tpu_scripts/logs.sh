#!/bin/sh
# Shows the last lines of every host's log; with "follow" the first host's as it grows.
. "$(dirname "$0")/lib.sh"
options "[follow]" "$@"

case $ARGUMENT in
follow) first "tail -n 50 -f ~/vlaa/logs/$RUN.log" ;;
"") everywhere "echo == \$(hostname); tail -n 20 ~/vlaa/logs/$RUN.log 2>/dev/null || echo no log yet" ;;
*) die "$ARGUMENT is not follow" ;;
esac
