"""Models are for whoever may read their folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.trainer.file_modes import share_files


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_model_files_are_readable_for_whoever_may_read_the_folder(
    folder_mode: int, file_mode: int, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    (folder / "adapter").mkdir(parents=True)
    folder.chmod(folder_mode)
    files = [folder / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"]
    for file in files:
        save_file({"weight": torch.zeros(2)}, file)
        file.chmod(0o600)
    share_files(folder)
    assert [file.stat().st_mode & 0o777 for file in files] == [file_mode, file_mode]
