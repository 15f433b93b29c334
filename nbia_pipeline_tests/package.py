"""``make check-package``: what is published is built, installed where this tree is not, and tried.

Built are the source distribution and, from it, the wheel. The wheel is installed without its dependencies; these come
from the environment of the tests, whose link to the tree does not count there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys
import nbia_pipeline
assert nbia_pipeline.__file__.startswith(sys.prefix), nbia_pipeline.__file__
names = [module.name for module in pkgutil.walk_packages(nbia_pipeline.__path__, "nbia_pipeline.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(f"{len(names)} modules of the wheel can be imported")
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="nbia-package-") as folder:
        work = Path(folder)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        _call(work, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build")
        _call(work, python, "-m", "build", "-q", "--outdir", work / "dist", ROOT)
        (source,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
        missing = missing_from(source)
        strange = [
            name
            for name in zipfile.ZipFile(wheel).namelist()
            if not name.startswith(("nbia_pipeline/", "nbia_pipeline-"))
        ]
        if missing or strange:
            print(f"the source distribution lacks {missing}, the wheel has {strange}", file=sys.stderr)
            return 1
        _call(work, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wheel)
        site = next((work / "venv" / "lib").glob("python*/site-packages"))
        (site / "of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"])  # its own .pth files do not count
        _call(work, work / "venv" / "bin" / "nbia-pipeline", "--version")
        _call(work, python, "-c", IMPORT_ALL)
    return 0


def missing_from(source: Path) -> list[str]:
    """Return which files under version control the source distribution lacks."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    return [name for name in listed if name and name not in names and not name.startswith((".github/", ".gitignore"))]


def _call(folder: Path, *words: str | Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in words], cwd=folder, env=environment, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
