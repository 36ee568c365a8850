"""Airflow: one task a share of the output's shards; the exit code decides between done, retry and a person.

`batchchat` must be on the workers, and the output on a disk that all of them see, or in a bucket.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow.decorators import dag, task
from airflow.exceptions import AirflowException, AirflowFailException

FOLDER = "/srv/tickets"
SHARES = 16
COMMAND = ["batchchat", "run", "jobs/label-tickets.yaml", "--set", "output.shards=64", "--log-format", "json"]
FINE = {0, 1}
LATER = {4, 69, 75, 143}


def judge(share: int, code: int) -> str:
    """Say what an exit code means: return what is fine, raise for a retry, or for a person."""
    if code in FINE:
        return f"share {share} is done"
    if code in LATER:
        raise AirflowException(f"share {share}: exit code {code}: a retry goes on where it stopped")
    raise AirflowFailException(f"share {share}: exit code {code} needs a person: see the log above")


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes its own time zone
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 6, "retry_delay": timedelta(minutes=20)},
)
def batchchat_shares() -> None:
    """Label all tickets, by several tasks at once."""

    @task(execution_timeout=timedelta(hours=4))
    def label(share: int) -> str:
        words = [*COMMAND, "--shard", f"{share}/{SHARES}"]
        return judge(share, subprocess.run(words, cwd=FOLDER, check=False).returncode)

    label.expand(share=list(range(SHARES)))


batchchat_shares()
