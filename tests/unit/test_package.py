"""What importing the package does to its surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_engine_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    hidden = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    script = "import vaultline, onnxruntime as o; o.SessionOptions()"
    subprocess.run(
        [sys.executable, "-c", script], env={**environment, "HOME": str(tmp_path)}
    ).check_returncode()
    assert list(tmp_path.iterdir()) == []
