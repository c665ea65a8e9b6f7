"""Time of `import letheon` and of `letheon --help`, beside that of Python itself; neither may load torch.

python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
import time

from measuring import spread, write

RUNS = 10
LOADED = "import sys; print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'numpy'}))"
HELP = (
    "import contextlib, io, sys; from letheon.cli.main import main; sys.argv = ['letheon', '--help']\n"
    "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()\n"
)
COMMANDS = {
    "python": ["-c", "pass"],
    "import letheon": ["-c", "import letheon"],
    "letheon --help": ["-m", "letheon", "--help"],
}


def run(*arguments: str) -> str:
    """Standard output of a fresh interpreter."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """In turn, so that whatever else the machine does is shared evenly."""
    loaded = {"import letheon": run("-c", f"import letheon\n{LOADED}"), "letheon --help": run("-c", HELP + LOADED)}
    heavy = {name: text.strip() for name, text in loaded.items()}
    if any("torch" in text for text in heavy.values()):
        raise SystemExit(f"torch was loaded: {heavy}")
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            run(*arguments)
            times[name].append(time.perf_counter() - began)
    seconds = {name: spread(values) for name, values in times.items()}
    write("import_time", {"runs": RUNS, "heavy_modules_loaded": heavy, "seconds": seconds})


if __name__ == "__main__":
    main()
