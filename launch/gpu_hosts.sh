#!/usr/bin/env bash
# Runs a command on every one of a list of hosts, over ssh.
#
#   launch/gpu_hosts.sh [run] --name=NAME --hosts=HOST,HOST,... [flags] -- COMMAND...
#   launch/gpu_hosts.sh logs  --name=NAME --hosts=...    follow the command again, from its beginning
#   launch/gpu_hosts.sh stop  --name=NAME --hosts=...    end the command on every host
#
# `run` copies this tree to every host and installs it in ~/asiarch/NAME; starts COMMAND there with
# JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; prints the hosts' lines, each with its host, and
# keeps them. When the command ends badly on one host it is ended on all, and that first status is the script's. The
# command belongs to the hosts: it goes on when this script or its connections end.
#
#   --name=NAME               of the job (required)
#   --hosts=LIST              names for ssh, user@host too, separated by commas
#   --hostfile=FILE           instead: a host a line, the first word of it; # begins a comment
#   --coordinator=ADDRESS     by which the other hosts reach the first; default: its name in the list
#   --port=PORT               of the coordinator; default: 8476
#   --extras=LIST             of the package; default: gpu,gcs
#   --ref=REVISION            copy this git revision; default: the working tree without what git ignores
#   --wait=SECONDS            before a lost connection is made again, doubled up to sixteenfold; default: 5
#   --no-install              the tree is there already, as it should be
#   --logs=DIR                default: runs/launch/NAME
#   --dry-run                 print the commands, run none
#   --help                    this text
#
# Every host must let you in without a password (ssh-copy-id), and needs Python 3.11 or newer and an NVIDIA driver.
#
#   launch/gpu_hosts.sh --name=search --hosts=gpu-0,gpu-1 -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/search --config.runner.kind=spmd

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONNECTION=(-o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=4)
LOST=255   # ssh's status when the connection failed
FOLLOWED=6 # times that a host is followed again after the connection was lost

# find_hosts: puts the hosts into `hosts`.
find_hosts() {
  local host
  if [[ -n ${flag[hosts]} && -n ${flag[hostfile]} ]]; then
    fail 2 "--hosts=${flag[hosts]} and --hostfile=${flag[hostfile]} are both given; leave one out"
  elif [[ -n ${flag[hosts]} ]]; then
    IFS=, read -ra hosts <<<"${flag[hosts]}"
  else
    required hostfile hosts.txt
    [[ -r ${flag[hostfile]} ]] || fail 2 "--hostfile=${flag[hostfile]} cannot be read; give a file with a host a line"
    mapfile -t hosts < <(sed 's/#.*//' "${flag[hostfile]}" | awk 'NF { print $1 }')
  fi
  ((${#hosts[@]})) || fail 2 "--hostfile=${flag[hostfile]} names no host; give one a line"
  for host in "${hosts[@]}"; do
    [[ $host =~ ^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$ ]] ||
      fail 2 "'$host' is no host for ssh; separate them by commas, without blanks"
  done
}

over_ssh() { try ssh "${CONNECTION[@]}" "$1" "$2"; }

# everywhere STEP REMEDY FUNCTION: calls FUNCTION NUMBER HOST for all hosts at the same time (one after the other in a
# dry run), and ends the script when one fails.
everywhere() {
  local number status waited=()
  for number in "${!hosts[@]}"; do
    if dry; then
      "$3" "$number" "${hosts[number]}"
    else
      "$3" "$number" "${hosts[number]}" &
      waited+=("$!")
    fi
  done
  for number in "${!waited[@]}"; do
    status=0
    wait "${waited[number]}" || status=$?
    ((status == 0)) || fail "$status" "$1 on ${hosts[number]} ended with status $status; $2"
  done
}

copy() { try scp -q "${CONNECTION[@]}" "$logs/source.tar.gz" "$2:asiarch-${flag[name]}.tar.gz"; }

install() { over_ssh "$2" "$(unpack_and_install "${flag[extras]}")"; }

start() {
  over_ssh "$2" "$(on_host start "$2" "JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=${#hosts[@]}" \
    "JAX_PROCESS_ID=$1" -- "${program[@]}")"
}

stop_there() { over_ssh "$2" "$(on_host stop)"; }

# stop: ends the command on all hosts that can be reached.
stop() {
  (everywhere 'ending the command' 'see what ssh says above; the other hosts were told, too' stop_there)
}

# follow_there NUMBER HOST: prints the host's lines until its job has ended. A lost connection is made again; one that
# stays lost, or a job that is not there any more, counts as a job that ended badly.
follow_there() {
  local attempt status child
  trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM HUP # before anything is started that it would forget
  local words=(ssh "${CONNECTION[@]}" "$2" "$(on_host follow)")
  for ((attempt = 1; attempt <= FOLLOWED; attempt++)); do
    ((attempt == 1)) || sleep "$(backoff "$((attempt - 1))" "${flag[wait]}")"
    status=0
    say "+ $(quoted "${words[@]}")"
    "${words[@]}" </dev/null &
    child=$!
    wait "$child" || status=$?
    ((status == LOST)) || break
  done
  if ((status == LOST || status == GONE)); then
    printf '[%s] asiarch-job %s ended with status %s\n' "$2" "${flag[name]}" "$status"
  fi
}

# follow_all: the lines of all hosts, together.
follow_all() {
  local number
  trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM HUP
  for number in "${!hosts[@]}"; do
    follow_there "$number" "${hosts[number]}" &
  done
  wait
}

# follow: prints and keeps the lines of all hosts and ends the script with the status of the first that ended badly.
follow() {
  local status=0 host
  if dry; then
    for host in "${hosts[@]}"; do over_ssh "$host" "$(on_host follow)"; done
    return
  fi
  follow_all | collected "$logs/output.log" stop || status=$?
  ((status == 0)) ||
    fail "$status" "the command ended with status $status; read $logs/output.log, then run the same line again"
  say "the command ended well on ${#hosts[@]} hosts; their lines are in $logs/output.log"
}

run_verb() {
  local coordinator status=0
  command_given
  coordinator=${flag[coordinator]:-${hosts[0]#*@}}:${flag[port]}
  log_folder
  if [[ ${flag["no-install"]} == no ]]; then
    pack "$logs/source.tar.gz"
    everywhere 'copying the tree' 'see what scp says above; nothing was started' copy
    everywhere 'installing' 'see what the host says above; nothing was started' install
  fi
  (everywhere 'starting the command' 'see what the host says above; it is ended on all of them' start) || status=$?
  if ((status)); then
    stop || true
    exit "$status"
  fi
  follow
}

logs_verb() {
  log_folder
  follow
}

stop_verb() { stop; }

# reattach: how to go on from here.
reattach() {
  local which=("--name=${flag[name]}") key
  for key in hosts hostfile logs; do
    [[ -z ${flag[$key]} ]] || which+=("--$key=${flag[$key]}")
  done
  say "what runs on the hosts goes on
  follow: $(quoted "$0" logs "${which[@]}")
  end:    $(quoted "$0" stop "${which[@]}")"
}

main() {
  declare -A flag=(
    [name]='' [hosts]='' [hostfile]='' [coordinator]='' [port]=8476 [extras]='gpu,gcs' [ref]='' [wait]=5
    [no-install]=no [logs]='' [dry-run]=no
  )
  local verb=run program=() hosts=() logs
  parse "$@"
  [[ $verb =~ ^(run|logs|stop)$ ]] || fail 2 "'$verb' is no verb of $SCRIPT; it has run, logs and stop"
  proper_name
  count port 1
  count wait 0
  find_hosts
  case $verb in
    run | logs) interruptible "${verb}_verb" ;;
    *) "${verb}_verb" ;;
  esac
}

main "$@"
