"""Airflow: every night at 2:15, one at a time; the exit code decides between done, retry and a person.

`batchchat` must be on the workers, and the output on a disk that all of them see, or on one worker's own (`queue=`).
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow.decorators import dag, task
from airflow.exceptions import AirflowException, AirflowFailException

FOLDER = "/srv/tickets"
COMMAND = ["batchchat", "run", "jobs/nightly-tickets.yaml", "--log-format", "json", "--quiet"]
LATER = {
    4: "a budget or the deadline was reached",
    69: "the provider is unavailable",
    75: "another run holds the output",
    143: "the worker was stopped",
}


def judge(code: int) -> str:
    """Say what an exit code means: return what is fine, raise for a retry, or for a person."""
    if code == 0:
        return "every row has a completion"
    if code == 1:
        return "some rows failed: the next night tries them again"
    if code in LATER:
        raise AirflowException(f"{LATER[code]}: a retry goes on where it stopped")
    raise AirflowFailException(f"exit code {code} needs a person: see the log above")


@dag(
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes its own time zone
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 6, "retry_delay": timedelta(minutes=20), "email_on_failure": True},
)
def batchchat_nightly() -> None:
    """Label what came during the day."""

    @task(execution_timeout=timedelta(hours=2))
    def label() -> str:
        return judge(subprocess.run(COMMAND, cwd=FOLDER, check=False).returncode)

    label()


batchchat_nightly()
