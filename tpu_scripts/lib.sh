# Shared by the verbs of tpu_scripts: settings, --dry-run, and how hosts are reached by each route.
# shellcheck shell=sh disable=SC2034,SC2153
set -eu

VERB=$(basename "$0" .sh)
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=${HERE%/*}
# On a host: whether the run goes on there (a number alone may be another's after a restart), and
# keys, which never stand in a command line.
# shellcheck disable=SC2016 # the host's shell reads it
ALIVE='grep -qs vlaa_jax /proc/$(cat ~/vlaa/pid 2>/dev/null)/cmdline'
KEYS='set -a; [ ! -f ~/vlaa.env ] || . ~/vlaa.env; set +a'
DRY=

die() {
    printf '%s: %s\n' "$VERB" "$*" >&2
    exit 2
}

# Words as the shell would take them, on one line.
quoted() {
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=,@%+-]* | '') printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
    printf '\n'
}

# Runs a command that changes something; with --dry-run only prints it.
run() {
    if [ "$DRY" ]; then quoted "$@"; else "$@"; fi
}

# Runs a command that only asks. With --dry-run it is printed, and its answer is what comes first.
ask() {
    answer=$1
    shift
    if [ "$DRY" ]; then
        quoted "$@" >&3
        [ "$answer" ] || return 1
        printf '%s\n' "$answer"
    else
        "$@"
    fi
}
exec 3>&1

settings() {
    file=${POD_ENV:-pod.env}
    [ -f "$file" ] || die "$file is missing: copy tpu_scripts/pod.env.example and fill it in"
    case $file in */*) ;; *) file=./$file ;; esac
    # shellcheck source=/dev/null
    . "$file"
    for name in PROJECT ZONE NAME ROUTE BUCKET SHARED RUN; do
        eval "value=\${$name:-}"
        [ "$value" ] || die "$name is not set in $file"
    done
    # These stand in commands that a shell on the host reads.
    for name in PROJECT ZONE NAME BUCKET SHARED RUN CHECKPOINT CONFIG IMAGE CLUSTER PORT; do
        eval "value=\${$name:-}"
        case $value in
        *[!A-Za-z0-9_./:,=@+-]* | *..* | -*)
            die "$name=$value in $file: letters, digits and _ . / : , = @ + - only, no .."
            ;;
        esac
    done
    case $HERE/$ROUTE in
    */gke/gke) ;;
    */gke/*) die "tpu_scripts/gke is for ROUTE=gke, $file says ROUTE=$ROUTE" ;;
    */gke) die "ROUTE=gke in $file is for tpu_scripts/gke" ;;
    esac
    case $ROUTE in
    gke) [ "${HOSTS:-0}" -ge 1 ] || die "set HOSTS in $file" ;;
    instance) HOSTS=1 ;;
    group) [ "${HOSTS:-0}" -gt 1 ] || die "ROUTE=group is for several hosts: set HOSTS in $file" ;;
    queued) HOSTS=${HOSTS:-1} ;;
    *) die "ROUTE=$ROUTE in $file is not instance, group, queued or gke" ;;
    esac
    case ${PROVISIONING:=standard}/$ROUTE in
    standard/* | spot/* | */gke | flex/instance | flex/group | reserved/queued) ;;
    *) die "PROVISIONING=$PROVISIONING does not go with ROUTE=$ROUTE" ;;
    esac
    REGION=${ZONE%-*}
    WHERE="--project=$PROJECT --zone=$ZONE"
}

options() {
    USAGE=$1
    shift
    ARGUMENT=
    for word in "$@"; do
        case $word in
        --dry-run) DRY=yes ;;
        -h | --help)
            printf 'usage: %s.sh [--dry-run] %s\n' "$VERB" "$USAGE"
            exit 0
            ;;
        -*) die "unknown option $word; usage: $VERB.sh [--dry-run] $USAGE" ;;
        *)
            [ -z "$ARGUMENT" ] || die "one argument at most; usage: $VERB.sh [--dry-run] $USAGE"
            ARGUMENT=$word
            ;;
        esac
    done
    settings
}

# Flags that say how capacity is asked for.
provisioning() {
    case $PROVISIONING in
    spot) echo --provisioning-model=SPOT --instance-termination-action=STOP ;;
    flex)
        echo --provisioning-model=FLEX_START "--max-run-duration=$RUN_FOR" \
            "--request-valid-for-duration=$WAIT_FOR" --instance-termination-action=DELETE
        ;;
    esac
}

# Sets STATE to a word for what there is of the pod, or to nothing where it is not there. Anything
# else that gcloud says, as of a login that is over, ends the script: it says nothing of the pod.
look() {
    said=$(mktemp)
    if STATE=$(describe "$1" 2>"$said"); then
        : "${STATE:=being made}"
    elif [ -z "$DRY" ] && ! grep -qi 'not.found' "$said"; then
        problem=$(cat "$said")
        rm -f "$said"
        die "cannot find out about $NAME: $problem"
    fi
    rm -f "$said"
}

describe() {
    # shellcheck disable=SC2086
    case $ROUTE in
    instance) ask "$1" gcloud compute instances describe "$NAME" $WHERE '--format=value(status)' ;;
    group)
        ask "$1" gcloud compute instance-groups managed describe "$NAME" $WHERE \
            '--format=value(status.isStable)'
        ;;
    queued)
        ask "$1" gcloud compute tpus queued-resources describe "$NAME" $WHERE \
            '--format=value(state.state)'
        ;;
    esac
}

# The names of the VMs, in the order that numbers the processes.
machines() {
    # shellcheck disable=SC2086
    case $ROUTE in
    instance | queued) echo "$NAME" ;;
    group)
        found=$(ask "$(seq -f "$NAME-%g" 0 $((HOSTS - 1)))" \
            gcloud compute instance-groups managed list-instances "$NAME" $WHERE \
            '--format=value(NAME)') || exit 2
        number=$(printf '%s\n' "$found" | grep -c .)
        [ "$number" -eq "$HOSTS" ] || die "$number hosts are there, HOSTS=$HOSTS: see check.sh"
        printf '%s\n' "$found" | sort
        ;;
    esac
}

# on MACHINE COMMAND: runs a command there; for queued resources on all workers, or on one.
on() {
    # shellcheck disable=SC2086
    case $ROUTE in
    queued)
        run gcloud compute tpus tpu-vm ssh "$NAME" $WHERE "--worker=${WORKER:-all}" "--command=$2"
        ;;
    *) run gcloud compute ssh "$1" $WHERE "--command=$2" ;;
    esac
}

# Status by hand: the shell leaves set -e off where a caller tests what this returns.
everywhere() {
    list=$(machines) || exit 2
    for machine in $list; do on "$machine" "$1" || return; done
}

leader() {
    list=$(machines) || exit 2
    printf '%s\n' "$list" | head -n 1
}

first() {
    machine=$(leader)
    WORKER=0
    on "$machine" "$1"
    unset WORKER
}

# copy FILE TARGET: to the home folder of every host.
copy() {
    list=$(machines) || exit 2
    # shellcheck disable=SC2086
    for machine in $list; do
        case $ROUTE in
        queued) run gcloud compute tpus tpu-vm scp "$1" "$NAME:$2" $WHERE --worker=all ;;
        *) run gcloud compute scp "$1" "$machine:$2" $WHERE ;;
        esac
    done
}
