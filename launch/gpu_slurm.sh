#!/usr/bin/env bash
# Runs a command on the nodes of a Slurm cluster: writes an sbatch script, submits it, follows its lines.
#
#   launch/gpu_slurm.sh [run]  --name=NAME --time=TIME [flags] -- COMMAND...
#   launch/gpu_slurm.sh script (the same flags)    write the sbatch script, and nothing else
#   launch/gpu_slurm.sh logs   --name=NAME         follow the job until it has ended
#   launch/gpu_slurm.sh cancel --name=NAME         cancel the job
#
# One task a node is started by srun, each line with the number of its task before it; Slurm tells each who it is
# (SLURM_PROCID, SLURM_NTASKS, SLURM_JOB_NODELIST). The job runs in the folder where this script was called, which the
# nodes must see, too, with the package in --venv (or in --container). It goes on when this script ends. Near its time
# limit the tasks get SIGTERM, on which a search ends in order; the same line, or --retries, continues it.
#
#   --name=NAME               of the job (required)
#   --time=TIME               limit, as Slurm writes it, such as 8:00:00 (required by run and script)
#   --nodes=N                 default: 1
#   --gpus=N                  of each node; default: 1
#   --cpus=N                  of each task; default: Slurm's
#   --partition=PARTITION     default: Slurm's
#   --account=ACCOUNT         default: Slurm's
#   --sbatch=FLAGS            further flags for sbatch, split at blanks, such as --sbatch='--mem=64G --qos=high'
#   --requeue                 let Slurm queue the job again when a node fails or the job is preempted
#   --signal=SIGNAL           before the time limit, as sbatch writes it; default: TERM@60
#   --venv=DIR                environment that has asiarch; default: .venv
#   --container=IMAGE         run in this image instead (needs pyxis: srun --container-image)
#   --mounts=MOUNTS           of the container, such as /data:/data; default: none
#   --retries=N               submissions after TIMEOUT, PREEMPTED or NODE_FAIL, at most; default: 0
#   --poll=SECONDS            between two looks at the job; default: 15
#   --logs=DIR                that the nodes see, too; default: runs/launch/NAME
#   --dry-run                 print the commands, run none
#   --help                    this text
#
#   launch/gpu_slurm.sh --name=search --nodes=2 --gpus=8 --time=24:00:00 --partition=gpu --requeue --retries=5 -- \
#     asiarch search --config=configs/default.py --workdir=gs://my-bucket/runs/search --config.runner.kind=spmd

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# directive FLAG VALUE: a line for sbatch, if there is a value.
directive() { [[ -z $2 ]] || printf '#SBATCH --%s=%s\n' "$1" "$2"; }

sbatch_script() {
  local more word srun=(srun --ntasks-per-node=1 --kill-on-bad-exit=1 --label)
  read -ra more <<<"${flag[sbatch]}"
  echo '#!/bin/bash'
  directive job-name "${flag[name]}"
  directive nodes "${flag[nodes]}"
  directive ntasks-per-node 1
  directive gpus-per-node "${flag[gpus]}"
  directive cpus-per-task "${flag[cpus]}"
  directive time "${flag[time]}"
  directive partition "${flag[partition]}"
  directive account "${flag[account]}"
  directive signal "${flag[signal]}"
  directive output "$(text "$logs/output.log")"
  echo '#SBATCH --open-mode=append'
  if [[ ${flag[requeue]} == yes ]]; then echo '#SBATCH --requeue'; else echo '#SBATCH --no-requeue'; fi
  for word in "${more[@]}"; do echo "#SBATCH $word"; done
  echo
  echo 'set -euo pipefail'
  echo 'export PYTHONUNBUFFERED=1'
  if [[ -n ${flag[container]} ]]; then
    srun+=("--container-image=${flag[container]}")
    [[ -z ${flag[mounts]} ]] || srun+=("--container-mounts=${flag[mounts]}")
  else
    echo "export PATH=$(quoted "$(realpath -m "${flag[venv]}")/bin"):\$PATH"
  fi
  [[ -z ${flag[cpus]} ]] || srun+=("--cpus-per-task=${flag[cpus]}") # srun does not take it over from sbatch
  echo "exec $(quoted "${srun[@]}" "${program[@]}")"
}

# text STRING: for a line of #SBATCH, where a % begins a pattern and a blank ends the word.
text() {
  local escaped=${1//%/%%}
  if [[ $escaped == *[[:space:]]* ]]; then escaped="\"$escaped\""; fi
  echo "$escaped"
}

# waiting IN_A_DRY_RUN: puts into `reply` the states of this user's jobs of that name that have not ended.
waiting() {
  local attempt
  for attempt in {1..10}; do
    if ask "$1" squeue --me "--name=${flag[name]}" --noheader '--format=%T'; then return; fi
    say "$trouble"
    ((attempt == 10)) || pause "$(backoff "$attempt" "$((flag[poll] < 5 ? flag[poll] : 5))")"
  done
  fail 1 "looking at the job ${flag[name]} failed ten times; see what squeue says above"
}

# show: prints what came into the job's log after the first `shown` bytes.
show() {
  local size
  [[ -e $logs/output.log ]] || return 0
  size=$(stat --format=%s "$logs/output.log")
  tail -c "+$((shown + 1))" "$logs/output.log" | head -c "$((size - shown))"
  shown=$size
}

# follow: prints the job's lines until it has ended; puts its state into `state`, such as COMPLETED, and its exit code,
# such as 1:0, into `code`.
follow() {
  local attempt
  waiting ''
  dry || show
  while [[ -n $reply ]]; do
    pause "${flag[poll]}"
    waiting ''
    show
  done
  for attempt in {1..10}; do # the accounting may lag behind the queue
    ask 'COMPLETED|0:0' sacct "--name=${flag[name]}" --allocations --noheader --parsable2 --starttime=now-30days \
      --format=State,ExitCode || fail 1 "asking how the job ended failed: $trouble; read $logs/output.log"
    IFS='|' read -r state code <<<"${reply##*$'\n'}"
    [[ $state =~ ^(|PENDING|RUNNING|COMPLETING|REQUEUED)$ ]] || break
    pause "${flag[poll]}"
  done
}

# submitted: queues the job. Two jobs of one name would write one workdir.
submitted() {
  waiting ''
  [[ -z $reply ]] ||
    fail 1 "a job ${flag[name]} is ${reply//$'\n'/, } already; follow it (logs), cancel it, or take another --name"
  run 'submitting the job' "see what sbatch says above; the script is $logs/job.sbatch" sbatch "$logs/job.sbatch"
}

described() {
  required time 8:00:00
  command_given
  count nodes 1
  count gpus 1
  [[ -z ${flag[cpus]} ]] || count cpus 1
  [[ -z ${flag[mounts]} || -n ${flag[container]} ]] || fail 2 "--mounts=${flag[mounts]} needs --container=IMAGE"
  [[ -n ${flag[container]} || -x ${flag[venv]}/bin/asiarch || ${flag["dry-run"]} == yes ]] ||
    fail 2 "--venv=${flag[venv]} has no bin/asiarch; set it up (make setup), or give --container=IMAGE"
}

run_verb() {
  local attempt state='' code=''
  described
  log_folder
  sbatch_script | save "$logs/job.sbatch"
  dry || [[ ! -e $logs/output.log ]] || shown=$(stat --format=%s "$logs/output.log")
  for ((attempt = 1; ; attempt++)); do
    submitted
    follow
    if ((attempt > flag[retries])) || [[ ! $state =~ ^(TIMEOUT|PREEMPTED|NODE_FAIL) ]]; then break; fi
    say "the job ended as $state; submission $attempt of at most ${flag[retries]} follows"
  done
  ended
}

logs_verb() {
  local state code
  log_folder
  follow
  ended
}

# ended: says how, and ends with the command's status, if it has one.
ended() {
  if dry; then return; fi
  local status=${code%%:*}
  if [[ $state != COMPLETED ]]; then
    [[ $status =~ ^[1-9][0-9]*$ ]] || status=1
    fail "$status" "the job ${flag[name]} ended as ${state:-unknown} (exit code ${code:-unknown}); \
read $logs/output.log, then run the same line again"
  fi
  say "the job ${flag[name]} ended well; its lines are in $logs/output.log"
}

script_verb() {
  described
  log_folder
  sbatch_script | save "$logs/job.sbatch"
  dry || echo "$logs/job.sbatch"
}

cancel_verb() {
  run "cancelling ${flag[name]}" 'see what scancel says above' scancel --me "--name=${flag[name]}"
}

# reattach: how to go on from here.
reattach() {
  local which=("--name=${flag[name]}" ${flag[logs]:+"--logs=${flag[logs]}"})
  say "the job ${flag[name]} goes on
  follow: $(quoted "$0" logs "${which[@]}")
  cancel: $(quoted "$0" cancel "${which[@]}")"
}

main() {
  declare -A flag=(
    [name]='' [time]='' [nodes]=1 [gpus]=1 [cpus]='' [partition]='' [account]='' [sbatch]='' [requeue]=no
    [signal]=TERM@60 [venv]=.venv [container]='' [mounts]='' [retries]=0 [poll]=15 [logs]='' [dry-run]=no
  )
  local verb=run program=() shown=0 logs reply trouble
  parse "$@"
  [[ $verb =~ ^(run|script|logs|cancel)$ ]] ||
    fail 2 "'$verb' is no verb of $SCRIPT; it has run, script, logs and cancel"
  proper_name
  count retries 0
  count poll 0
  case $verb in
    run | logs) interruptible "${verb}_verb" ;;
    *) "${verb}_verb" ;;
  esac
}

main "$@"
