"""Submit the job in this folder through Ray's Jobs API, and follow its output.

meshray run -- python docs/examples/requests/submit.py [--keep SECONDS]

While the job keeps its application up, every node answers at port 8350:

curl http://127.0.0.1:8350/output
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

FOLDER = Path(__file__).resolve().parent
#: The address that `meshray run` sets (RAY_API_SERVER_ADDRESS).
ADDRESS = None


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print the output of the job as it appears."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def main() -> int:
    """Return 0 if the job succeeded."""
    parser = argparse.ArgumentParser(description="Submit the requests job.")
    parser.add_argument("--keep", type=int, default=120, help="how long the application stays up, seconds")
    keep = parser.parse_args().keep
    client = JobSubmissionClient(ADDRESS)
    job = client.submit_job(
        entrypoint=f"python job.py --keep {keep}",
        # Ray copies the folder to every node, and installs the packages there in an environment of their own.
        runtime_env={"working_dir": str(FOLDER), "pip": str(FOLDER / "requirements.txt")},
    )
    asyncio.run(follow(client, job))
    status = client.get_job_status(job)
    print(f"{job}: {status}")
    return 0 if status == JobStatus.SUCCEEDED else 1


if __name__ == "__main__":
    raise SystemExit(main())
