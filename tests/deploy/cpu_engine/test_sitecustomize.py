"""The stand-ins for GPU packages: importable, honest about not being installed, and never computing anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parents[3] / "deploy" / "cpu_engine"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where no package is installed, whatever this machine has."""
    return run("-S", "-c", f"import sitecustomize\n{code}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SHIM)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import triton.language as tl; from triton.runtime.jit import JITFunction",
        "from torchvision.transforms import InterpolationMode; assert InterpolationMode.BICUBIC",
        "import triton\n@triton.jit\ndef f(): return 1\nassert f() == 1",
        "import triton\n@triton.autotune(configs=[triton.Config({})], key=[])\ndef f(): return 1\nassert f() == 1",
        "import triton; assert (triton.cdiv(7, 2), triton.next_power_of_2(5)) == (4, 8)",
        "from sgl_kernel import Thing\nclass Mine(Thing, flag=1): pass\nMine(1, a=2)",
        "import importlib.util\nfor name in ('triton', 'torchvision'):\n"
        "    __import__(name)\n    assert importlib.util.find_spec(name) is None",
        "import importlib.util; assert importlib.util.find_spec('json') is not None",
    ],
)
def test_what_sglang_and_its_libraries_do_at_import_works(code: str) -> None:
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_is_called_on_the_cpu_says_so() -> None:
    done = python("import sgl_kernel; sgl_kernel.rmsnorm(1, 2)")
    assert "sgl_kernel.rmsnorm was called, but only a GPU engine has it" in done.stderr


def test_other_missing_packages_stay_missing() -> None:
    assert "ModuleNotFoundError" in python("import no_such_package").stderr


def test_python_loads_it_by_itself_where_the_path_names_its_folder() -> None:
    done = run("-c", "import sys; print(sys.modules['sitecustomize'].__file__)")
    assert Path(done.stdout.strip()) == SHIM / "sitecustomize.py"


def test_a_package_that_is_installed_wins(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("real = True")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import triton; assert triton.real is True"
    done = python(f"{code}\nimport importlib.util; assert importlib.util.find_spec('triton')")
    assert done.returncode == 0, done.stderr
