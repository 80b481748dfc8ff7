"""benchmarks/README.md names every benchmark."""

import ast
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def command_of(file: Path) -> str | None:
    """What a file's docstring says to run it by, if it says that."""
    lines = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
    said = [line.strip() for line in lines if line.startswith("    ")]
    commands = [line for line in said if line.startswith(("python benchmarks/", "make "))]
    return commands[0].split(" --")[0].split("  ")[0] if commands else None


COMMANDS = {
    file.name: command
    for file in (*BENCHMARKS.glob("*.py"), BENCHMARKS / "serving" / "command.py")
    if (command := command_of(file)) and file.name != "readme.py"
}


def test_commands_are_found() -> None:
    assert COMMANDS["smoke.py"] == "python benchmarks/smoke.py"
    assert COMMANDS["command.py"] == "python benchmarks/serving"
    assert COMMANDS["fidelity.py"] == "make fidelity"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_its_row(command: str) -> None:
    assert f"| `{command}`" in (BENCHMARKS / "README.md").read_text()
