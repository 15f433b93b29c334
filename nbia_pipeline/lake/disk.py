"""Files and folders of a disk: linked, deleted, removed where nothing is left in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nbia_pipeline.lake.layout import is_folder_note, is_foreign


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, so that it stays when another file replaces the first; copy it where links fail.

    The data of the file are on the disk already. A copy is as new as what is written after it, and without flushes
    could be lost together with that.
    """
    try:
        os.link(source, target)
    except OSError:  # a file system without links; whatever else is wrong, the copy shows it
        shutil.copyfile(source, target)


def delete(folder: Path) -> None:
    """Delete a folder. What others hold open in it, such as ``.nfs*``, stays, out of the way, until a later sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    left = (file for file in folder.rglob("*") if not file.is_dir())
    if not all(is_foreign(file.relative_to(folder).as_posix()) for file in left):
        shutil.rmtree(folder)  # raises the reason


def removed_if_empty(folder: Path) -> bool:
    """Remove a folder that is empty, or has nothing but what a file manager noted about what was in it."""
    try:
        left = list(folder.iterdir())
        if all(is_folder_note(entry.name) and entry.is_file() for entry in left):
            for entry in left:
                entry.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as e:  # if it is still there, it is not empty
        return isinstance(e, FileNotFoundError)
    return True
