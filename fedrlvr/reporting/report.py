from pathlib import Path
from typing import Any
from fedrlvr.config import Config
def write_report(directory: Path, config: Config, records: list[dict[str, Any]]) -> Path:
    return directory / "report.html"
