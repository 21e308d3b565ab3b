"""Compiles the native part of a lookup, the C files of ``sfroute/_native``.

    python tools/build_native.py [--strict] [--sanitize] [FOLDER]

The build of the package calls it by ``tools/build_hook.py`` and goes on without the part if there is no compiler; so
``CC=false`` makes a pure wheel. As a program it puts the part beside its source, or into FOLDER, and fails if it
cannot.
The compiler is ``CC`` from the environment, else the one that this Python was built with.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent / "sfroute" / "_native"
SOURCES: Final = ("heart.h", "heart.c", "waiting.c", "misses.c", "leaving.c", "calls.c")
"""As ``sfroute._native`` has them, which compares them with what a part was compiled from."""
STRICT: Final = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
SANITIZE: Final = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class CannotBuild(Exception):
    """Why not: no compiler, no headers, or a Python that the part does not support."""


def file_name() -> str:
    """What this Python calls the compiled part."""
    return f"heart{sysconfig.get_config_var('EXT_SUFFIX') or '.so'}"


def build(folder: Path, options: tuple[str, ...] = ()) -> Path:
    """Compile it into the folder. Returns the file.

    Raises:
        CannotBuild: it says why.
    """
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise CannotBuild("it is for CPython with the GIL")
    linker = sysconfig.get_config_var("LDSHARED")
    if os.name != "posix" or not linker:
        raise CannotBuild("this platform's compiler is not known")
    own, *link = shlex.split(linker)
    compiler = shlex.split(os.environ.get("CC", "")) or [own]
    target = folder / file_name()
    # Not in place: a process that has mapped the file would see it change.
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    read = b"".join((FOLDER / name).read_bytes() for name in SOURCES)
    command = [
        *compiler,
        *link,
        *shlex.split(sysconfig.get_config_var("CCSHARED") or "-fPIC"),
        *("-std=c11", "-O2", "-fvisibility=hidden", *options),
        # sfroute._native compares it with the sources it finds beside the part.
        f'-DHEART_SOURCE="{hashlib.sha256(read).hexdigest()}"',
        *("-isystem", sysconfig.get_path("include")),  # no warnings of others' headers
        *(str(FOLDER / name) for name in SOURCES if name.endswith(".c")),
        *("-o", str(part)),
    ]
    try:
        # The user's own compiler.
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise CannotBuild(f"{shlex.join(compiler)} failed: {done.stderr.strip()}")
        part.replace(target)
    except OSError as error:
        raise CannotBuild(f"{shlex.join(compiler)}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strict", action="store_true", help="a warning is an error")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args()
    try:
        built = build(
            options.folder,
            (STRICT if options.strict else ()) + (SANITIZE if options.sanitize else ()),
        )
    except CannotBuild as error:
        sys.exit(f"the native part cannot be built: {error}")
    sys.stdout.write(f"built {built.name}\n")


if __name__ == "__main__":
    main()
