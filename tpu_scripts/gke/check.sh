#!/bin/sh
# Says how the JobSet and its pods are, restarts included.
# shellcheck source-path=SCRIPTDIR/.. source=lib.sh
. "$(dirname "$0")/../lib.sh"
options "" "$@"

run kubectl get jobset "$NAME"
run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" --output=wide
