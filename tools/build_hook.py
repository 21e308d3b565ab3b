"""What hatchling runs while it builds a wheel or an editable installation: compiles the native part, where it can."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

from build_native import FOLDER, CannotBuild, build


class BuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]  # where hatchling is not installed
    """Adds the compiled part to the wheel, or puts it beside its source for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before anything is packed."""
        self._folder = tempfile.TemporaryDirectory(prefix="sfroute-build-")
        editable = version == "editable"
        try:
            built = build(FOLDER if editable else Path(self._folder.name))
        except CannotBuild as error:
            self.app.display_warning(f"sfroute is built without its native part: {error}")
            return
        if not editable:
            build_data["force_include"][str(built)] = f"sfroute/_native/{built.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After everything is packed."""
        self._folder.cleanup()
