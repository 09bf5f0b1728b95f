#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, as a JobSet, or through xpk.
#
#   launch/tpu_gke.sh [run]    --name=NAME --image=IMAGE --accelerator=LABEL --topology=TOPOLOGY [flags] -- COMMAND...
#   launch/tpu_gke.sh manifest (the same flags)    write the manifest, and nothing else
#   launch/tpu_gke.sh logs     --name=NAME         follow the pods until the JobSet has ended
#   launch/tpu_gke.sh down     --name=NAME         delete the JobSet with its pods
#   launch/tpu_gke.sh VERB --xpk --cluster=CLUSTER --tpu-type=TYPE --name=NAME --image=IMAGE [flags] -- COMMAND...
#
# `run` writes the manifest, applies it, prints the pods' lines, each with its pod, keeps them, and ends with status 0
# when the JobSet is Completed, 1 when it is Failed. All pods of a slice run the same COMMAND; GKE tells each who it is
# (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES). When a pod ends badly or its node is taken away, the JobSet starts all of them
# again, at most --max-restarts times. The cluster needs JobSet, and Kueue where --queue is given.
#
#   --name=NAME               of the JobSet (required)
#   --image=IMAGE             built from the Dockerfile with EXTRAS=tpu,gcs (required by run and manifest)
#   --accelerator=LABEL       cloud.google.com/gke-tpu-accelerator of the nodes, such as tpu-v5-lite-podslice,
#                             tpu-v5p-slice, tpu-v6e-slice, tpu7x (required by run and manifest)
#   --topology=TOPOLOGY       cloud.google.com/gke-tpu-topology, such as 4x4 or 2x2x2 (required by run and manifest)
#   --chips=N                 of one node, which is one pod; default: 4
#   --slices=N                default: 1
#   --queue=QUEUE             Kueue's LocalQueue; default: none, the JobSet starts at once
#   --spot                    nodes that cost less and may be taken away
#   --service-account=NAME    Kubernetes service account that may use the bucket; default: the namespace's
#   --shm=SIZE                of /dev/shm, a part of the node's memory; default: 16Gi
#   --max-restarts=N          default: 20
#   --privileged              run as root with the node's devices; for nodes where an ordinary user cannot open the TPU
#   --namespace=NAMESPACE     default: kubectl's
#   --context=CONTEXT         default: kubectl's
#   --poll=SECONDS            between two looks at the JobSet; default: 15
#   --logs=DIR                default: runs/launch/NAME
#   --delete                  delete the JobSet when it has ended, well or badly (not on Ctrl-C)
#   --xpk                     submit by `xpk workload create` to a cluster that xpk made
#   --cluster=CLUSTER         xpk's cluster (required with --xpk)
#   --tpu-type=TYPE           xpk's name of the slice, such as v5litepod-16 (required by run with --xpk)
#   --project=PROJECT         of xpk's cluster; default: gcloud's
#   --zone=ZONE               of xpk's cluster; default: gcloud's
#   --dry-run                 print the commands, run none
#   --help                    this text
#
#   launch/tpu_gke.sh --name=search --image=us-docker.pkg.dev/my-project/images/asiarch:1 --spot \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --service-account=asiarch -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/search --config.runner.kind=spmd
#   launch/tpu_gke.sh --xpk --cluster=my-cluster --tpu-type=v5litepod-16 --name=search --image=IMAGE -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/search --config.runner.kind=spmd

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

GRACE=60 # seconds that a pod has between SIGTERM and SIGKILL

# text STRING: as a double-quoted YAML scalar.
text() {
  local escaped=${1//\\/\\\\}
  escaped=${escaped//\"/\\\"}
  escaped=${escaped//$'\n'/\\n}
  printf '"%s"' "${escaped//$'\t'/\\t}"
}

# argument STRING: the same for a container's argument, in which Kubernetes expands $(NAME) and takes $$ for $.
argument() { text "${1//\$/\$\$}"; }

# hosts: the pods of one slice: its chips over those of a node.
hosts() {
  local chips=1 side
  for side in ${flag[topology]//x/ }; do chips=$((chips * side)); done
  ((chips % flag[chips] == 0)) ||
    fail 2 "--topology=${flag[topology]} has $chips chips, which --chips=${flag[chips]} does not divide; give a node's chips"
  echo $((chips / flag[chips]))
}

# when FLAG LINES: the lines, if the flag was given.
when() { [[ -z ${flag[$1]} || ${flag[$1]} == no ]] || printf '%s\n' "$2"; }

manifest() {
  local pods word
  pods=$(hosts)
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${flag[name]}
END
  when queue "  labels:
    kueue.x-k8s.io/queue-name: $(text "${flag[queue]}")"
  cat <<END
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # one slice, one node pool
spec:
  network:
    enableDNSHostnames: true  # names by which the pods of a slice find each other
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: ${flag["max-restarts"]}
  replicatedJobs:
    - name: slice
      replicas: ${flag[slices]}
      template:
        spec:
          completionMode: Indexed  # GKE then sets TPU_WORKER_ID and TPU_WORKER_HOSTNAMES in every pod
          parallelism: $pods
          completions: $pods
          backoffLimit: 0  # one pod that ends badly ends the slice; the JobSet starts it again
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $GRACE
END
  when service-account "              serviceAccountName: $(text "${flag["service-account"]}")"
  cat <<END
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(text "${flag[accelerator]}")
                cloud.google.com/gke-tpu-topology: $(text "${flag[topology]}")
END
  when spot '                cloud.google.com/gke-spot: "true"'
  cat <<END
              tolerations:
                - key: google.com/tpu
                  operator: Exists
END
  when spot '                - key: cloud.google.com/gke-spot
                  operator: Exists'
  cat <<END
              containers:
                - name: asiarch
                  image: $(text "${flag[image]}")
                  command: [$(argument "${program[0]}")]
                  args:
END
  for word in "${program[@]:1}"; do printf '                    - %s\n' "$(argument "$word")"; done
  cat <<END
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
END
  when privileged '                  securityContext:
                    privileged: true
                    runAsUser: 0'
  cat <<END
                  resources:
                    limits:
                      google.com/tpu: ${flag[chips]}
                  volumeMounts:
                    - name: shm
                      mountPath: /dev/shm
              volumes:
                - name: shm
                  emptyDir:
                    medium: Memory
                    sizeLimit: $(text "${flag[shm]}")
END
}

# kubectl_words WORD...: puts a kubectl command for this context and namespace into `words`.
kubectl_words() {
  words=(kubectl ${flag[context]:+"--context=${flag[context]}"} ${flag[namespace]:+"--namespace=${flag[namespace]}"} "$@")
}

# xpk_words WORD...: puts an xpk command for this cluster into `words`.
xpk_words() {
  words=(xpk workload "$1" "--workload=${flag[name]}" "--cluster=${flag[cluster]}"
    ${flag[project]:+"--project=${flag[project]}"} ${flag[zone]:+"--zone=${flag[zone]}"} "${@:2}")
}

# outcome IN_A_DRY_RUN: puts the JobSet's true conditions into `reply`: Completed or Failed at the end. A service that
# does not answer is asked again.
outcome() {
  local attempt
  # shellcheck disable=SC2016  # for kubectl
  kubectl_words get jobset "${flag[name]}" '--output=jsonpath={.status.conditions[?(@.status=="True")].type}'
  for attempt in {1..10}; do
    if ask "$1" "${words[@]}"; then return; fi
    [[ ! $trouble =~ NotFound ]] || fail 1 "there is no JobSet ${flag[name]} (any more); run starts one"
    say "$trouble"
    ((attempt == 10)) || pause "$(backoff "$attempt" "$((flag[poll] < 5 ? flag[poll] : 5))")"
  done
  fail 1 "looking at the JobSet ${flag[name]} failed ten times; see what kubectl says above (right --context?)"
}

over() { [[ " $reply " =~ \ (Completed|Failed)\  ]]; }

# follow: prints and keeps the pods' lines until the JobSet has ended; puts its last conditions into `reply`.
follow() {
  local since=--tail=-1
  outcome ''
  until over; do
    kubectl_words logs "--selector=jobset.sigs.k8s.io/jobset-name=${flag[name]}" --follow --prefix \
      --max-log-requests=1000 "$since"
    # It ends with the pods, and at once while there are none; what comes after it is asked for the next time.
    if dry; then
      try "${words[@]}"
    elif "${words[@]}" </dev/null 2>>"$logs/kubectl.log" | tee -a "$logs/output.log"; then
      since=--since-time=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    fi
    outcome Completed
    over || pause "${flag[poll]}"
  done
}

apply() {
  # A JobSet that has ended would stay as it is, and look like the end of this run.
  kubectl_words get jobset "${flag[name]}" --ignore-not-found --output=name
  ask '' "${words[@]}" || fail 1 "looking for a JobSet ${flag[name]} failed: $trouble"
  [[ -z $reply ]] || fail 1 "there is a JobSet ${flag[name]} already; follow it (logs), or delete it (down) before run"
  manifest | save "$logs/jobset.yaml"
  kubectl_words apply "--filename=$logs/jobset.yaml"
  run 'applying the manifest' "see what kubectl says above; does the cluster have JobSet${flag[queue]:+ and Kueue}?" \
    "${words[@]}"
}

xpk_create() {
  xpk_words create "--tpu-type=${flag["tpu-type"]}" "--num-slices=${flag[slices]}" "--docker-image=${flag[image]}" \
    "--max-restarts=${flag["max-restarts"]}" "--termination-grace-period-seconds=$GRACE" \
    "--command=$(quoted "${program[@]}")"
  [[ ${flag[spot]} == no ]] || words+=(--spot)
  run 'creating the workload' 'see what xpk says above' "${words[@]}"
}

delete() {
  if [[ ${flag[xpk]} == yes ]]; then
    xpk_words delete --force
  else
    kubectl_words delete jobset "${flag[name]}" --ignore-not-found
  fi
  run "deleting the JobSet ${flag[name]}" 'it may still hold its nodes; see above, and ask again with down' "${words[@]}"
}

described() {
  required image us-docker.pkg.dev/PROJECT/images/asiarch:1
  command_given
  [[ ${flag[xpk]} == no ]] || return 0
  required accelerator tpu-v5-lite-podslice
  required topology 4x4
  [[ ${flag[topology]} =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail 2 "--topology=${flag[topology]} is no topology; give two or three numbers, such as --topology=4x4"
  hosts >/dev/null
}

run_verb() {
  described
  log_folder
  if [[ ${flag[xpk]} == yes ]]; then
    required tpu-type v5litepod-16
    xpk_create
  else
    apply
  fi
  watch
}

logs_verb() {
  log_folder
  watch
}

# watch: follows the JobSet to its end and says how it was.
watch() {
  follow
  [[ ${flag[delete]} == no ]] || delete
  if dry; then return; fi
  [[ $reply =~ Completed ]] ||
    fail 1 "the JobSet ${flag[name]} has Failed; read $logs/output.log, delete it (down) and run the same line again"
  say "the JobSet ${flag[name]} is Completed; its lines are in $logs/output.log"
}

manifest_verb() {
  described
  [[ ${flag[xpk]} == no ]] || fail 2 "--xpk writes its own manifest; leave it out with manifest"
  log_folder
  manifest | save "$logs/jobset.yaml"
  dry || echo "$logs/jobset.yaml"
}

# reattach: how to go on from here.
reattach() {
  local which=("--name=${flag[name]}") key
  for key in namespace context cluster project zone logs; do
    [[ -z ${flag[$key]} ]] || which+=("--$key=${flag[$key]}")
  done
  [[ ${flag[xpk]} == no ]] || which+=(--xpk)
  say "the JobSet ${flag[name]} goes on, and its nodes cost until it is deleted
  follow:    $(quoted "$0" logs "${which[@]}")
  tear down: $(quoted "$0" down "${which[@]}")"
}

main() {
  declare -A flag=(
    [name]='' [image]='' [accelerator]='' [topology]='' [chips]=4 [slices]=1 [queue]='' [spot]=no [service-account]=''
    [shm]=16Gi [max-restarts]=20 [privileged]=no [namespace]='' [context]='' [poll]=15 [logs]='' [delete]=no [xpk]=no
    [cluster]='' [tpu-type]='' [project]='' [zone]='' [dry-run]=no
  )
  local verb=run program=() words=() logs reply trouble
  parse "$@"
  [[ $verb =~ ^(run|manifest|logs|down)$ ]] ||
    fail 2 "'$verb' is no verb of $SCRIPT; it has run, manifest, logs and down"
  proper_name
  [[ ${flag[xpk]} == no ]] || required cluster my-cluster
  count chips 1
  count slices 1
  count max-restarts 0
  count poll 0
  case $verb in
    down) delete ;;
    run | logs) interruptible "${verb}_verb" ;;
    *) "${verb}_verb" ;;
  esac
}

main "$@"
