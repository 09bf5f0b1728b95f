#!/usr/bin/env bash
# What the launch scripts share, and the half of them that runs on the hosts. Scripts source it; a host that has a copy
# of the tree runs it:
#
#   bash launch/common.sh job install NAME EXTRAS [DEBIAN_PACKAGE...]
#   bash launch/common.sh job start   NAME LABEL [VARIABLE=VALUE...] -- COMMAND...
#   bash launch/common.sh job follow  NAME
#   bash launch/common.sh job stop    NAME
#
# A job is a folder ~/asiarch/NAME with source/ (the tree), venv/, log, pid, label, lock (held while it runs) and status
# (there when it has ended). It does not end with the connection that started it. LABEL stands before every line that
# `follow` prints; the label tpu stands for `worker N`, and sets the variables that say where in its slice a TPU VM is.

set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$0: bash $BASH_VERSION is too old, 4.4 is needed; install a newer one (on macOS: brew install bash)" >&2
  exit 2
fi

SCRIPT=${0##*/}
GONE=76 # exit status of `job follow` when the job is not there: the host was started anew
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# ---- telling

say() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

# fail STATUS SENTENCE: says why, and ends with that status.
fail() {
  say "$2"
  exit "$1"
}

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# quoted WORD...: the words as a shell reads them back; plain ones stay as they are.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//"'"/"$quote"}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# ---- the command line

# parse ARGUMENT...: fills flag[] (declared by the script with its defaults; a default of `no` makes a switch), verb,
# and program, the words after `--`.
parse() {
  local key
  program=()
  if (($#)) && [[ $1 != -* ]]; then
    verb=$1
    shift
  fi
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        program=("$@")
        break
        ;;
      --*=*)
        key=${1%%=*}
        known "$key"
        [[ ${flag[${key#--}]} != no && ${flag[${key#--}]} != yes ]] || fail 2 "$1 takes no value; say $key"
        [[ -n ${1#*=} ]] || fail 2 "$key has an empty value; say $key=VALUE or leave it out"
        flag[${key#--}]=${1#*=}
        ;;
      --*)
        known "$1"
        [[ ${flag[${1#--}]} == no || ${flag[${1#--}]} == yes ]] || fail 2 "$1 needs a value; say $1=VALUE"
        flag[${1#--}]=yes
        ;;
      *) fail 2 "'$1' is neither a flag nor behind --; put the command to run after --, as $SCRIPT --help shows" ;;
    esac
    shift
  done
}

known() {
  [[ -n ${flag[${1#--}]+set} ]] || fail 2 "$1 is no flag of $SCRIPT; $SCRIPT --help lists them"
}

# required FLAG EXAMPLE
required() {
  [[ -n ${flag[$1]} ]] || fail 2 "--$1 is missing; give it, such as --$1=$2"
}

# count FLAG LEAST: the flag holds a whole number that is large enough.
count() {
  if [[ ! ${flag[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${flag[$1]} < $2)); then
    fail 2 "--$1=${flag[$1]} is not a whole number of at least $2; give one, such as --$1=$(($2 > 0 ? $2 : 1))"
  fi
}

# proper_name: --name may stand in cloud resources, host names and file names.
proper_name() {
  required name search
  [[ ${flag[name]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail 2 "--name=${flag[name]} cannot be used; take at most 40 lower-case letters, digits and hyphens, a letter first"
}

command_given() {
  ((${#program[@]})) || fail 2 "there is no command to run; give it after --, such as: \
-- asiarch search --config=configs/default.py --workdir=gs://BUCKET/runs/NAME"
}

dry() { [[ ${flag["dry-run"]} == yes ]]; }

# ---- doing

# try COMMAND...: runs it, or prints it in a dry run; returns its status. It reads no input.
try() {
  if dry; then
    quoted "$@"
    return
  fi
  say "+ $(quoted "$@")"
  "$@" </dev/null
}

# run STEP REMEDY COMMAND...: as `try`, and ends the script when the command fails.
run() {
  local step=$1 remedy=$2 status=0
  shift 2
  try "$@" || status=$?
  ((status == 0)) || fail "$status" "$step ended with status $status; $remedy"
}

# ask DRY COMMAND...: puts what the command prints into `reply`, its errors into `trouble`; returns its status. In a dry
# run the command is printed and DRY is the reply.
# shellcheck disable=SC2034  # the scripts read both
ask() {
  local assumed=$1 status=0 errors
  shift
  trouble=''
  if dry; then
    quoted "$@"
    reply=$assumed
    return
  fi
  errors=$(mktemp)
  reply=$("$@" </dev/null 2>"$errors") || status=$?
  trouble=$(<"$errors")
  rm -f "$errors"
  return "$status"
}

# pause SECONDS: sleeps so that a signal is answered at once, which a shell that waits for `sleep` does not do.
pause() {
  dry || read -r -t "$1" _ <> <(:) || true
}

# backoff ATTEMPT SECONDS: seconds to wait after an attempt (1, 2, ...): doubled each time, up to 16 times as long.
backoff() { echo $(($2 * (1 << ($1 < 5 ? $1 - 1 : 4)))); }

# save FILE: writes standard input there, or prints the command that would.
save() {
  if dry; then
    printf "cat >%s <<'END_OF_FILE'\n" "$(quoted "$1")"
    cat
    printf 'END_OF_FILE\n'
  else
    cat >"$1"
  fi
}

# log_folder: makes --logs, by default runs/launch/NAME, and puts its absolute name into `logs`.
log_folder() {
  logs=${flag[logs]:-runs/launch/${flag[name]}}
  [[ $logs == /* ]] || logs=$PWD/$logs
  run 'making the folder of logs' 'name another one with --logs=DIR' mkdir -p "$logs"
}

# pack FILE: the tree that --ref names, else the working tree without what git ignores, as a tar.gz. The index that
# git keeps for you is left alone.
pack() {
  local remedy='the tree must be a git checkout; see what git says above'
  if [[ -n ${flag[ref]} ]]; then
    run "packing ${flag[ref]}" "$remedy" git -C "$TREE" archive --format=tar.gz "--output=$1" "${flag[ref]}"
    return
  fi
  # shellcheck disable=SC2016  # the inner shell expands
  run 'packing the working tree' "$remedy" env "GIT_INDEX_FILE=$1.index" sh -c \
    'cd "$1" && git read-tree HEAD && git add --all && git archive --format=tar.gz "--output=$2" "$(git write-tree)"' \
    pack "$TREE" "$1"
}

# on_host VERB ARGUMENT...: the command line, for a host's shell, that calls the second half of this file there.
on_host() { quoted bash "asiarch/${flag[name]}/source/launch/common.sh" job "$1" "${flag[name]}" "${@:2}"; }

# unpack_and_install EXTRAS [DEBIAN_PACKAGE...]: the command line for a host to which the packed tree was copied.
unpack_and_install() {
  local fresh=asiarch/${flag[name]}/source.new
  echo "rm -rf $fresh && mkdir -p $fresh && tar -xzf asiarch-${flag[name]}.tar.gz -C $fresh && $(
    quoted bash "$fresh/launch/common.sh" job install "${flag[name]}" "$@"
  )"
}

# collected FILE STOP: prints and keeps the lines of all hosts from standard input. When a job ends badly, calls STOP,
# once, so that no host waits for one that is gone, and returns that first status when the input ends.
collected() {
  local line first=0
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s\n' "$line"
    printf '%s\n' "$line" >>"$1"
    if ((first == 0)) && [[ $line =~ ^\[[^]]+\]\ asiarch-job\ [a-z0-9-]+\ ended\ with\ status\ ([0-9]+)$ ]]; then
      first=${BASH_REMATCH[1]}
      ((first == 0)) || "$2" >&2 || true
    fi
  done
  return "$first"
}

# interruptible COMMAND...: runs it; on Ctrl-C, says by `reattach` (the script's own) how to go on, and ends. It is run
# beside this shell, which only waits: a shell forgets a signal that comes just as its command ends well.
interruptible() {
  if dry; then
    "$@"
    return
  fi
  trap 'trap "" INT TERM HUP; end_all; echo >&2; reattach >&2; exit 130' INT TERM HUP
  (
    trap - INT QUIT # else what runs beside a shell ignores them
    "$@"
  ) &
  wait "$!"
}

# end_all: ends what this shell runs; with all below it where this shell leads a process group, as a terminal's job does.
# Told twice: what a shell was just about to start when it was told first has not heard it.
end_all() {
  # shellcheck disable=SC2046  # no job, no word
  kill -- "-$$" 2>/dev/null || kill $(jobs -p) 2>/dev/null || true
  wait
  sleep 0.2
  kill -- "-$$" 2>/dev/null || true
}

# ---- on the hosts

running() { [[ -e $folder/lock ]] && ! (flock --nonblock 8) 8<"$folder/lock"; }

# job VERB NAME ARGUMENT...
job() {
  local verb=${1:-} name=${2:-}
  [[ $verb =~ ^(install|start|run|follow|stop)$ && -n $name ]] ||
    fail 2 "'job $verb $name' is not known; the head of ${BASH_SOURCE[0]} lists what is"
  folder=$HOME/asiarch/$name
  mkdir -p "$folder"
  "job_$verb" "$name" "${@:3}"
}

job_install() {
  local name=$1 extras=$2
  ! running || fail 1 "job $name runs on $(hostname); follow it (logs) or end it (stop) before it is installed again"
  rm -rf "$folder/source"
  mv "$folder/source.new" "$folder/source"
  debian "${@:3}"
  [[ -x $folder/venv/bin/python ]] || environment_made "$folder/venv" ||
    fail 1 "no Python 3.11 or newer on $(hostname), and uv could not fetch one; install python3.12 with its venv module"
  cd "$folder/source"
  "$folder/venv/bin/python" -m pip --disable-pip-version-check install --quiet -c requirements.lock -e ".[$extras]"
  echo "installed on $(hostname): asiarch-jax[$extras]"
}

# debian PACKAGE...: installs what is missing where this user may; a search can do without.
debian() {
  local package
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 ||
      { sudo -n apt-get update -qq && sudo -n apt-get -o DPkg::Lock::Timeout=600 install -qq --yes "$package"; } ||
      say "$package could not be installed on $(hostname); the jail will be another one (docs/SECURITY.md)"
  done
}

# environment_made FOLDER: a virtual environment of a Python that is new enough; images of TPU VMs may have an older one.
environment_made() {
  local python
  for python in python3.12 python3.13 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$python" -m venv "$1" && return
      rm -rf "$1"
    fi
  done
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv &&
    "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 "$1"
}

job_start() {
  local name=$1 label=$2 waited=0 variables=(PYTHONUNBUFFERED=1)
  shift 2
  while [[ ${1:?no -- before the command} != -- ]]; do
    variables+=("$1")
    shift
  done
  shift
  if running; then
    echo "job $name runs on $(hostname) already and goes on"
    return
  fi
  if [[ $label == tpu ]]; then
    slice_variables
    label="worker $worker"
  fi
  rm -f "$folder/status" "$folder/pid"
  echo "$label" >"$folder/label"
  setsid bash "${BASH_SOURCE[0]}" job run "$name" env "${variables[@]}" "$@" >"$folder/log" 2>&1 </dev/null &
  until [[ -s $folder/pid ]]; do
    ((waited++ < 100)) || fail 1 "job $name did not start on $(hostname) within 10 s; read $folder/log there"
    sleep 0.1
  done
  echo "[$label] job $name started on $(hostname)"
}

# job_run NAME COMMAND...: what `start` leaves behind, the head of its own process group.
job_run() {
  local name=$1 status=0
  shift
  exec 9>"$folder/lock"
  flock --timeout 5 9 || return 0 # `running` holds it for a moment, another job for longer
  trap : TERM # the command gets it, too, and its status is still to be written
  echo "$$" >"$folder/pid"
  cd "$folder/source"
  PATH=$folder/venv/bin:$PATH "$@" 9>&- || status=$?
  ((status < 255)) || status=254 # ssh says 255 of itself
  [[ -z $(tail -c 1 "$folder/log") ]] || echo
  echo "asiarch-job $name ended with status $status"
  echo "$status" >"$folder/status.new"
  mv "$folder/status.new" "$folder/status"
}

job_follow() {
  local label
  label=$(cat "$folder/label" 2>/dev/null || hostname)
  if running; then
    tail -n +1 -F --sleep-interval=0.2 --pid="$(<"$folder/pid")" "$folder/log" 2>/dev/null |
      sed -u "s|^|[$label] |" 2>/dev/null
    while running; do sleep 0.1; done
  elif [[ -s $folder/status ]]; then
    sed "s|^|[$label] |" "$folder/log"
  fi
  [[ -s $folder/status ]] || fail "$GONE" "[$label] job $1 is not there any more and left no status; start it again"
  return "$(<"$folder/status")"
}

# job_stop NAME: SIGTERM, which a search answers by ending its workers; SIGKILL after a minute.
job_stop() {
  local waited=0 pid
  if ! running; then
    echo "job $1 does not run on $(hostname)"
    return
  fi
  pid=$(<"$folder/pid")
  kill -TERM -- "-$pid"
  while running; do
    if ((waited++ == 600)); then kill -KILL -- "-$pid"; fi
    sleep 0.1
  done
  echo "job $1 ended on $(hostname)"
}

# slice_variables: puts this TPU VM's number into `worker`, and what names its place in the slice into `variables`, from
# the metadata server. Jailed workers have no network to ask it, hence TPU_SKIP_MDS_QUERY and the bounds, as on GKE.
slice_variables() {
  local table key value
  worker=$(metadata agent-worker-number)
  # A list of addresses; in an older form, of name:number:address.
  variables+=("TPU_WORKER_ID=$worker" "TPU_WORKER_HOSTNAMES=$(metadata worker-network-endpoints | sed 's/[^,]*://g')")
  table=$(metadata tpu-env)
  for key in ACCELERATOR_TYPE CHIPS_PER_HOST_BOUNDS HOST_BOUNDS; do
    value=$(sed -n "s/^$key: *'\{0,1\}\([^']*\).*/\1/p" <<<"$table")
    [[ -z $value ]] || variables+=("TPU_$key=$value")
  done
  variables+=(TPU_SKIP_MDS_QUERY=1)
}

metadata() {
  curl --silent --show-error --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  "$@"
fi
