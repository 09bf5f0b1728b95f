#!/usr/bin/env bash
# Runs a command on every host of a Cloud TPU slice, and again on a new slice when the slice is preempted.
#
#   launch/tpu_vm.sh [run] --name=NAME --zone=ZONE --type=TYPE [flags] -- COMMAND...
#   launch/tpu_vm.sh logs  --name=NAME --zone=ZONE      follow the command again, from its beginning
#   launch/tpu_vm.sh stop  --name=NAME --zone=ZONE      end the command on every host; the slice stays, and costs
#   launch/tpu_vm.sh state --name=NAME --zone=ZONE      say what Cloud TPU says of the slice
#   launch/tpu_vm.sh down  --name=NAME --zone=ZONE      delete the slice
#
# `run` creates the slice, or takes one that is READY; copies this tree to every host and installs it; starts COMMAND on
# all of them; prints their lines, each with its worker, and keeps them. The command belongs to the hosts: it goes on
# when this script or its connection ends. The status is that of the first host that ended badly. Nothing is deleted but
# what was preempted and is to be created anew, unless you ask: --delete, or `down`.
#
#   --name=NAME               of the slice and of the job on it (required)
#   --zone=ZONE               such as us-west4-a (required)
#   --type=TYPE               accelerator type, such as v5litepod-8 or v6e-16 (required by run)
#   --project=PROJECT         default: gcloud's own
#   --version=VERSION         runtime of the hosts; default: by TYPE
#   --queued                  ask for a queued resource, and wait for it; give the flag to every verb
#   --valid-until=DURATION    of a queued request, such as 6h; default: it waits for ever
#   --spot                    capacity that costs less and may be taken away
#   --service-account=EMAIL   that the hosts act as; default: Compute Engine's own
#   --create=FLAGS            further flags for gcloud's create, split at blanks, such as --create='--network=my-net'
#   --extras=LIST             of the package; default: tpu,gcs
#   --ref=REVISION            copy this git revision; default: the working tree without what git ignores
#   --retries=N               new starts after a preemption or a lost connection, at most; default: 20
#   --wait=SECONDS            before the first of them, doubled up to sixteenfold; default: 60
#   --poll=SECONDS            between two looks at a slice that is not ready; default: 30
#   --logs=DIR                default: runs/launch/NAME
#   --delete                  delete the slice when the command has ended, well or badly (not on Ctrl-C)
#   --dry-run                 print the commands, run none
#   --help                    this text
#
# A slice of several hosts needs your key in the ssh agent: ssh-add ~/.ssh/google_compute_engine
#
#   launch/tpu_vm.sh --name=search --zone=us-west4-a --type=v5litepod-8 --spot --delete -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/search
#   launch/tpu_vm.sh --name=big --zone=us-east5-b --type=v6e-16 --queued --spot -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/big --config.runner.kind=spmd

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CREATED='see what gcloud says above; if there is no capacity, try --queued, --spot or another --zone'
REACHED='see what gcloud says above; the slice stays as it is'

runtime_version() {
  case ${flag[type]} in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x-*) echo v2-alpha-tpu7-ubuntu2404 ;;
    *) fail 2 "--type=${flag[type]} has no runtime version here; give one with --version=VERSION (gcloud compute tpus \
tpu-vm versions list --zone=${flag[zone]})" ;;
  esac
}

# tpus WORD... -- REST...: the words of a gcloud command for this zone and project, in `words`.
tpus() {
  words=(gcloud compute tpus)
  while [[ $1 != -- ]]; do
    words+=("$1")
    shift
  done
  words+=("--zone=${flag[zone]}" ${flag[project]:+"--project=${flag[project]}"} --quiet "${@:2}")
}

kind() { if [[ ${flag[queued]} == yes ]]; then echo queued-resources; else echo tpu-vm; fi; }

# on_workers COMMAND: puts into `words` what runs COMMAND, a line for a shell, on every host.
on_workers() {
  tpus tpu-vm ssh "${flag[name]}" -- --worker=all --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15 \
    --ssh-flag=-oServerAliveCountMax=4 "--command=$1"
}

# look IN_A_DRY_RUN: puts into `state` what the service says of the slice, or ABSENT.
look() {
  state=''
  if [[ ${flag[queued]} == yes ]]; then
    tpus queued-resources describe "${flag[name]}" -- '--format=value(state.state)'
    looked "$1"
    [[ $state == ACTIVE || $state == READY ]] || return 0
  fi
  tpus tpu-vm describe "${flag[name]}" -- '--format=value(state)'
  looked "$1"
  # The hosts of a queued resource go before its state tells.
  [[ ${flag[queued]} == no || $state != ABSENT ]] || state=SUSPENDING
}

# looked IN_A_DRY_RUN: asks by `words`; a service that does not answer is asked again, for about eight minutes.
looked() {
  local attempt
  for attempt in {1..10}; do
    if ask "$1" "${words[@]}"; then
      state=$reply
      return
    fi
    if [[ $trouble =~ NOT_FOUND|not\ found ]]; then
      state=ABSENT
      return
    fi
    say "$trouble"
    ((attempt == 10)) || pause "$(backoff "$attempt" "$((flag[poll] < 5 ? flag[poll] : 5))")"
  done
  fail 1 "looking at ${flag[name]} failed ten times; see what gcloud says above (signed in? right --project?)"
}

# create: asks for the slice; returns gcloud's status.
create() {
  local more
  read -ra more <<<"${flag[create]}"
  if [[ ${flag[queued]} == yes ]]; then
    more+=("--node-id=${flag[name]}" "--runtime-version=${flag[version]}")
    [[ -z ${flag["valid-until"]} ]] || more+=("--valid-until-duration=${flag["valid-until"]}")
  else
    more+=("--version=${flag[version]}")
  fi
  [[ ${flag[spot]} == no ]] || more+=(--spot)
  [[ -z ${flag["service-account"]} ]] || more+=("--service-account=${flag["service-account"]}")
  tpus "$(kind)" create "${flag[name]}" -- "--accelerator-type=${flag[type]}" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${more[@]}"
  try "${words[@]}"
}

delete() {
  tpus "$(kind)" delete "${flag[name]}" --
  [[ ${flag[queued]} == no ]] || words+=(--force) # with the slice that belongs to it
  run "deleting ${flag[name]}" 'it may still cost; see what gcloud says above, and ask again with down' "${words[@]}"
}

# lost: looks at the slice and returns whether it was taken away. One that somebody deleted is not created again.
lost() {
  look READY
  case $state in
    PREEMPTED | TERMINATED | SUSPENDING | SUSPENDED | FAILED) say "${flag[name]} is $state" ;;
    ABSENT | DELETING) fail 1 "${flag[name]} was deleted by somebody; run the same line again to create it anew" ;;
    *) return 1 ;;
  esac
}

# ready: creates the slice if there is none and waits until it is READY; says in `created` whether it did. Returns 1 when
# what it created was lost.
ready() {
  local status=0 seen=''
  created=no
  look ABSENT
  while [[ $state != READY ]]; do
    case $state in
      ABSENT | PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        if [[ $created == yes ]]; then return 1; fi
        [[ $state == ABSENT ]] || delete
        create || status=$?
        if ((status)); then
          ((attempt)) || fail "$status" "creating ${flag[name]} ended with status $status; $CREATED"
          return 1
        fi
        created=yes follow_only=no
        ;;
      STOPPED | HIDDEN)
        fail 1 "${flag[name]} is $state; start it (gcloud compute tpus tpu-vm start) or delete it (down) before run"
        ;;
      *)
        [[ $state == "$seen" ]] || say "${flag[name]} is ${state:-not known yet}; looking every ${flag[poll]} s"
        seen=$state
        pause "${flag[poll]}"
        ;;
    esac
    look READY
  done
}

# step NAME REMEDY WORD...: runs it. Returns 1 if it failed because the slice was lost, or where it had worked before;
# else ends the script.
step() {
  local status=0
  try "${@:3}" || status=$?
  ((status)) || return 0
  lost || ((attempt)) || fail "$status" "$1 ended with status $status; $2"
  say "$1 ended with status $status"
  return 1
}

# install: copies the tree to all hosts and installs it there.
install() {
  tpus tpu-vm scp "$logs/source.tar.gz" "${flag[name]}:asiarch-${flag[name]}.tar.gz" -- --worker=all
  step 'copying the tree' "$REACHED (several hosts need your key: ssh-add ~/.ssh/google_compute_engine)" \
    "${words[@]}" || return
  on_workers "$(unpack_and_install "${flag[extras]}" bubblewrap)"
  step 'installing on the hosts' "$REACHED" "${words[@]}"
}

start() {
  on_workers "$(on_host start tpu -- "${program[@]}")"
  step 'starting the command' "$REACHED" "${words[@]}"
}

stop() {
  on_workers "$(on_host stop)"
  try "${words[@]}"
}

# follow: prints and keeps the lines of all hosts; puts the status of the first job that ended badly into `ended` (0: none
# did), and that of the connection into `connection`.
follow() {
  local statuses
  on_workers "$(on_host follow)"
  ended=0 connection=0
  if dry; then
    try "${words[@]}"
    return
  fi
  say "+ $(quoted "${words[@]}")"
  "${words[@]}" </dev/null | collected "$logs/output.log" stop && return
  statuses=("${PIPESTATUS[@]}")
  connection=${statuses[0]} ended=${statuses[1]}
}

# once: one life of the slice. Returns 0 when the command has ended, its status in `ended`; 1 when it is to be run again.
once() {
  ready || return
  if [[ $follow_only == no ]]; then
    # Where the slice is the old one, some hosts may still be at work.
    ((attempt == 0)) || [[ $created == yes ]] || stop || true
    install || return
    start || return
  fi
  follow
  if ((ended == 0 && connection == 0)); then return 0; fi
  # A preempted slice ends its programs before the service calls it PREEMPTED; 2 is a command that refused its flags.
  ((ended == 2)) || pause "${flag[wait]}"
  follow_only=no
  # Where the service mends the hosts (REPAIRING and the like), `ready` waits for them.
  if lost || [[ $state != READY ]]; then return 1; fi
  ((ended == 0)) || return 0
  ((connection == GONE)) || follow_only=yes # GONE: a host was started anew, its job with it
  return 1
}

run_verb() {
  local attempt follow_only=no created state ended=0 connection=0
  required type v5litepod-8
  command_given
  [[ -n ${flag[version]} ]] || flag[version]=$(runtime_version)
  log_folder
  pack "$logs/source.tar.gz"
  for ((attempt = 0; ; attempt++)); do
    if once; then break; fi
    if ((attempt == flag[retries])); then
      [[ ${flag[delete]} == no ]] || delete
      fail 1 "${flag[name]} was lost $((attempt + 1)) times: --retries=${flag[retries]} is used up; run the line again"
    fi
    say "new start $((attempt + 1)) of at most ${flag[retries]} in $(backoff $((attempt + 1)) "${flag[wait]}") s"
    pause "$(backoff $((attempt + 1)) "${flag[wait]}")"
  done
  [[ ${flag[delete]} == no ]] || delete
  if dry; then return; fi
  ((ended == 0)) ||
    fail "$ended" "the command ended with status $ended; read $logs/output.log, then run the same line again"
  say "the command ended well; its lines are in $logs/output.log"
  [[ ${flag[delete]} == yes ]] || reattach
}

logs_verb() {
  local ended connection
  log_folder
  follow
  ((ended == 0)) || fail "$ended" "the command ended with status $ended; read $logs/output.log"
  ((connection == 0)) || fail "$connection" "following ended with status $connection; $REACHED"
}

stop_verb() {
  on_workers "$(on_host stop)"
  run 'ending the command' "$REACHED" "${words[@]}"
}

state_verb() {
  local state
  look READY
  dry || echo "$state"
}

# reattach: how to go on from here.
reattach() {
  local which=("--name=${flag[name]}" "--zone=${flag[zone]}") key
  for key in project logs; do
    [[ -z ${flag[$key]} ]] || which+=("--$key=${flag[$key]}")
  done
  [[ ${flag[queued]} == no ]] || which+=(--queued)
  say "the slice ${flag[name]} is left as it is, with what runs on it, and costs until it is deleted
  follow:    $(quoted "$0" logs "${which[@]}")
  end:       $(quoted "$0" stop "${which[@]}")
  tear down: $(quoted "$0" down "${which[@]}")"
}

main() {
  declare -A flag=(
    [name]='' [zone]='' [type]='' [project]='' [version]='' [queued]=no [valid-until]='' [spot]=no
    [service-account]='' [create]='' [extras]='tpu,gcs' [ref]='' [retries]=20 [wait]=60 [poll]=30 [logs]='' [delete]=no
    [dry-run]=no
  )
  local verb=run program=() words=() logs reply trouble
  parse "$@"
  [[ $verb =~ ^(run|logs|stop|state|down)$ ]] ||
    fail 2 "'$verb' is no verb of $SCRIPT; it has run, logs, stop, state and down"
  proper_name
  required zone us-west4-a
  count retries 0
  count wait 0
  count poll 0
  case $verb in
    down) delete ;;
    run | logs) interruptible "${verb}_verb" ;;
    *) "${verb}_verb" ;;
  esac
}

main "$@"
