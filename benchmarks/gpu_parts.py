"""A model's directory in parts below 64 MiB, for machines to which no larger file can be brought, and joined again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

PART = 60 << 20
"""Most bytes of a part."""
INDEX = "parts.json"


def split(model: Path, out: Path, part: int = PART) -> None:
    """Write the files of a directory as parts, with an index of their names, sizes and SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, object]]] = {}
    for path in sorted(p for p in model.iterdir() if p.is_file()):
        index[path.name] = []
        with path.open("rb") as file:
            while (data := file.read(part)) or not index[path.name]:
                name = f"{path.name}.{len(index[path.name]):03d}"
                (out / name).write_bytes(data)
                digest = hashlib.sha256(data).hexdigest()
                index[path.name].append({"name": name, "bytes": len(data), "sha256": digest})
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def is_split(directory: Path) -> bool:
    """Whether a directory holds parts."""
    return (directory / INDEX).is_file()


def join(parts: Path, out: Path) -> Path:
    """Join the parts in a directory of their own.

    Raises:
        ValueError: a part is missing or is not what the index says.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, pieces in json.loads((parts / INDEX).read_text("utf-8")).items():
        with (out / Path(name).name).open("wb") as file:
            for piece in pieces:
                path = parts / Path(piece["name"]).name
                data = path.read_bytes() if path.is_file() else b""
                if hashlib.sha256(data).hexdigest() != piece["sha256"]:
                    raise ValueError(f"{path} is missing or damaged: bring it again.")
                file.write(data)
    return out
