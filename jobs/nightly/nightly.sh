#!/bin/sh
# Run a job at night and turn its exit code into what should happen. For cron, or any other scheduler.
#
#   nightly.sh JOB [options of batchchat run]
#
# cron mails whatever is printed. So a good night and one that goes on by itself are silent; what a person should see
# in the morning is printed; what cannot wait also goes to $PAGE, a command that takes a text (a pager, a chat, mail).
#
# Exit code of this script: 0 nothing to do · 1 look at it in the morning · 3 a person is needed · 75 try again later
set -u
PATH=${BATCHCHAT_BIN:-/usr/local/bin}:$PATH
job=$1
log=${BATCHCHAT_LOG:-$job.log}                           # one JSON object a line; logrotate it

batchchat run "$@" --log-format json >>"$log" 2>&1
code=$?
case $code in
0)          exit 0 ;;                                 # every row has a completion
4 | 69 | 75)                                          # budget or deadline · provider down · another run is at it
    exit 75 ;;                                        # the next start goes on where this one stopped
129 | 130 | 143)                                      # stopped by a signal: a reboot, or a person
    exit 75 ;;
1)  echo "batchchat: some rows of $job failed"; level=1 ;;
5)  echo "batchchat: the gate of $job failed"; level=1 ;;
*)  level=3 ;;                                        # 2 job or input · 3 key, model, credit · 70 · 74 disk
esac
tail -n 5 "$log"
if [ "$level" = 3 ]; then
    text="batchchat: $job needs a person (exit code $code): $(tail -n 1 "$log")"
    echo "$text"
    if [ -n "${PAGE:-}" ]; then $PAGE "$text"; fi
fi
exit "$level"
