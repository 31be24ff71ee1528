"""The agent's answer is typed up to the rendered line, and help loads none of its modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).resolve().parents[3] / "meshray" / "cli"
#: The agent's own object is passed on there, to a script or a file.
PASSED_ON = {"commands/status.py", "bundle.py"}


def test_answers_of_the_agent_are_decoded_and_not_looked_up_by_key() -> None:
    texts = {str(file.relative_to(CLI)): file.read_text() for file in CLI.rglob("*.py")}
    assert {name for name, text in texts.items() if "request_json" in text} == PASSED_ON
    assert not [name for name, text in texts.items() if name in PASSED_ON and 'answer.get("' in text]
    for name in ("commands/status.py", "commands/doctor.py", "commands/ping.py", "deep_job.py", "doctor_fix.py"):
        assert '.get("' not in texts[name], name


def test_help_loads_no_message() -> None:
    program = "import sys; from meshray.cli import main; main.run(main.app_for(('--help',)));"
    shown = "print('loaded', [name for name in sys.modules if name.startswith(('msgspec', 'meshray.protocol'))])"
    done = subprocess.run([sys.executable, "-c", program + shown], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"
