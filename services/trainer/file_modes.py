"""Files that their writer kept for its own user -> files for whoever may read the folder."""

from pathlib import Path

READ_AND_WRITE = 0o666


def share_files(folder: Path) -> None:
    """Give all files below `folder` the permissions of the folder, which are those of the umask.

    `safetensors` makes its files for the own user alone (0600): another user's server could not load the model.
    """
    mode = folder.stat().st_mode & READ_AND_WRITE
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)
