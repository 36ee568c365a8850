#!/bin/bash
# SLURM: 16 tasks, each with its share of the 64 shards of the output, which lies on a file system that all nodes see.
#   sbatch jobs/workers/slurm.sh
# A task whose provider was away, or whose time was over, is queued again below. One share alone is run again by hand with
# `--shard 7/16`: `sbatch --array=7` would be an array of one task, which takes all shards.
#SBATCH --job-name=batchchat
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --output=logs/batchchat-%A-%a.log
set -u

# All tasks ask one broker, so that the job's limits hold over all of them; `batchchat broker` runs on the login node.
# export BATCHCHAT_BROKER=login-node:7077 BATCHCHAT_BROKER_TOKEN=…

batchchat run jobs/label-tickets.yaml --shard auto --set output.shards=64 --log-format json &
pid=$!
trap 'kill -TERM $pid' TERM    # what is in flight ends within --grace, 20 s
wait $pid
code=$?
while kill -0 $pid 2>/dev/null; do
  wait $pid
  code=$?
done

case $code in
  0 | 1) exit 0 ;;                                  # done; failed rows are looked at once, by `batchchat status`
  4 | 69 | 75 | 143) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;  # the same share goes on
  *) exit $code ;;                                  # 2, 3, 70, 74: a person
esac
