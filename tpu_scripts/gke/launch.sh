#!/bin/sh
# Starts the run as a JobSet on one TPU slice of GKE (kubectl at the cluster, JobSet in it), once.
# GKE sets TPU_WORKER_ID and TPU_WORKER_HOSTNAMES in every pod, so the hosts find each other. Python
# is the first process of its pod: SIGTERM reaches it, two minutes before the pod is taken away.
# shellcheck source-path=SCRIPTDIR/.. source=lib.sh
. "$(dirname "$0")/../lib.sh"
options "" "$@"

: "${CHECKPOINT:?is not set}" "${CONFIG:?is not set}" "${IMAGE:?is not set}" "${GKE_TPU:?is not set}"
list() { for word in "$@"; do printf "                    - '%s'\n" "$(printf %s "$word" | sed "s/'/''/g")"; done; }
eval "set -- ${OPTIONS:-}"

manifest=$(
    cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: 10 # all pods start again together, and go on after the last saved step
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              serviceAccountName: vlaa # may read and write the bucket
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $GKE_TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: train
                  image: $IMAGE
                  command:
$(list python -m vlaa_jax.main "--config=$CONFIG" "--workdir=$SHARED/runs/$RUN" \
        "--config.model.checkpoint=$SHARED/checkpoints/$(basename "$CHECKPOINT")" "$@")
                  envFrom:
                    - secretRef: {name: vlaa-keys, optional: true}
                  resources:
                    requests: {google.com/tpu: $CHIPS_PER_HOST}
                    limits: {google.com/tpu: $CHIPS_PER_HOST}
                  volumeMounts:
                    - {name: shared, mountPath: $SHARED}
              volumes:
                - name: shared
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes: {bucketName: $BUCKET, mountOptions: implicit-dirs}
END
)
if [ "$DRY" ]; then
    printf 'kubectl apply -f - <<\\END\n%s\nEND\n' "$manifest"
else
    printf '%s\n' "$manifest" | kubectl apply -f -
fi
