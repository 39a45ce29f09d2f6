"""A JupyterLab on loopback and a headless Chromium in it: open a notebook, run it, look.

Everything is temporary: settings, kernel connection files, the browser's profile. `Lab` owns the server's
process, `open_browser` the browser; both end with their ``with``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def missing() -> str:
    """Why the browser tests cannot run here, or nothing."""
    if chromium() is None:
        return "no Chromium here (Debian: apt-get install chromium)"
    for package in ("playwright", "jupyterlab", "ipywidgets", "anywidget"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return ""


def chromium() -> str | None:
    """The browser to drive: $CHROMIUM, or the system's."""
    named = os.environ.get("CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Lab:
    """One JupyterLab server on a free loopback port, with its own settings; use as a context manager."""

    def __init__(self, folder: Path, *, theme: str = "JupyterLab Light", root: Path | None = None) -> None:
        self._home = folder / "home"
        self.root = root or folder / "notebooks"
        self.root.mkdir(parents=True, exist_ok=True)
        self._theme = theme
        self._token = secrets.token_hex(16)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "jupyterlab.log"

    def __enter__(self) -> Lab:
        self._write_settings()
        command = [
            sys.executable, "-m", "tests.browser.warm_lab", "--no-browser", "--ip=127.0.0.1", f"--port={self._port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self._token}",
            f"--ServerApp.root_dir={self.root}",
            "--LabApp.expose_app_in_browser=True", "--ServerApp.terminals_enabled=False", "--allow-root",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment(), cwd=self.root, start_new_session=True
            )
        self._wait_until_up(60.0)
        return self

    def __exit__(self, *exc: object) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)

    @property
    def address(self) -> str:
        """Where the lab begins."""
        return f"http://127.0.0.1:{self._port}/lab"

    def url(self, notebook: str) -> str:
        """Where a notebook opens, alone in its workspace."""
        return f"{self.address}/tree/{notebook}?token={self._token}&reset"

    def _environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "BACKBONE_"))}
        checkout = Path(__file__).resolve().parents[2]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(checkout), env.get("PYTHONPATH", ""))))
        for name in ("config", "data", "runtime"):
            env[f"JUPYTER_{name.upper()}_DIR"] = str(self._home / name)
        env["JUPYTERLAB_SETTINGS_DIR"] = str(self._home / "settings")
        env["JUPYTERLAB_WORKSPACES_DIR"] = str(self._home / "workspaces")
        env["IPYTHONDIR"] = str(self._home / "ipython")
        env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
        return env

    def _write_settings(self) -> None:
        settings = {
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "apputils-extension/themes": {"theme": self._theme},
            "notebook-extension/tracker": {"windowingMode": "none"},
        }
        for name, values in settings.items():
            path = self._home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def _wait_until_up(self, timeout_s: float) -> None:
        url = f"http://127.0.0.1:{self._port}/api/status?token={self._token}"
        pause = threading.Event()
        for _ in range(int(timeout_s / 0.25)):
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at once:\n{self._log.read_text()[-2000:]}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=2):
                return
            pause.wait(0.25)
        raise RuntimeError(f"JupyterLab did not come up in {timeout_s} s:\n{self._log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Any]:
    """A headless browser's context, with a fresh profile and no network beyond loopback."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder / "profile"),
            executable_path=chromium(),
            args=CHROMIUM_FLAGS,
            headless=True,
            viewport={"width": 1280, "height": 1000},
        )
        try:
            yield context
        finally:
            context.close()


class Page:
    """One open notebook, in a page that may show others before and after."""

    def __init__(self, page: Any, artefacts: Path, name: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self._artefacts = artefacts
        self._name = name
        page.on("pageerror", self._note)

    def _note(self, error: Any) -> None:
        self.errors.append(str(error))

    def open(self, lab: Lab, notebook: str) -> None:
        """Load the notebook, into the lab that is there or a new one, and wait until its kernel is there."""
        if self.page.url.startswith(lab.address):
            self.page.evaluate("path => void window.jupyterapp.commands.execute('docmanager:open', { path })", notebook)
        else:
            self.page.goto(lab.url(notebook), wait_until="domcontentloaded", timeout=60_000)
        self.page.wait_for_function(_READY, arg=notebook, timeout=90_000)

    def close(self) -> None:
        """End the kernel and close the notebook; the lab stays."""
        self.page.remove_listener("pageerror", self._note)
        self.page.evaluate(_CLOSE)

    def reload(self) -> None:
        """Load the page again and wait until the notebook has its kernel back."""
        self.page.reload(wait_until="domcontentloaded", timeout=60_000)
        self.page.wait_for_function(_READY, arg="", timeout=90_000)

    def run_all(self, timeout_s: float = 60.0) -> None:
        """Run every cell and wait until the last one is done."""
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(_DONE, timeout=timeout_s * 1000)

    def ask(self, code: str) -> str:
        """Run `code` in the notebook's kernel, outside its cells, and return what it printed."""
        printed: str = self.page.evaluate(_ASK, code)
        return printed.strip()

    def command(self, name: str) -> None:
        """One of JupyterLab's own commands, by its id."""
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def failures(self) -> list[str]:
        """What the notebook shows as an error, and what the page threw."""
        shown = self.page.eval_on_selector_all(
            "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']",
            "nodes => nodes.map(node => node.textContent.slice(0, 600))",
        )
        broken = self.page.eval_on_selector_all(
            ".jp-OutputArea-output",
            "nodes => nodes.map(n => n.textContent).filter(t => t.includes('Error displaying widget'))",
        )
        return [*shown, *broken, *self.errors]

    def screenshot(self, what: str, selector: str | None = None) -> Path:
        """Keep a picture of the page (or of one element) among the artefacts."""
        path = self._artefacts / f"{self._name}-{what}.png"
        if selector is None:
            self.page.screenshot(path=str(path))
        else:
            self.page.locator(selector).first.scroll_into_view_if_needed()
            self.page.locator(selector).first.screenshot(path=str(path))
        return path

    def texts(self, selector: str) -> list[str]:
        """The texts of all matching elements."""
        found: list[str] = self.page.locator(selector).all_text_contents()
        return found

    def wait_for_change(self, selector: str, timeout_s: float = 15.0) -> None:
        """Wait until the text of some matching element differs from what it is now, with the first one in
        sight."""
        self.page.wait_for_function(
            """([selector, before]) => {
                document.querySelector(selector)?.scrollIntoView({ block: 'center' });
                const now = [...document.querySelectorAll(selector)].map(node => node.textContent);
                return JSON.stringify(now) !== before;
            }""",
            arg=[selector, json.dumps(self.texts(selector), ensure_ascii=False, separators=(",", ":"))],
            timeout=timeout_s * 1000,
        )

    def painted(self, selector: str) -> int:
        """How many pixels the canvases within an element hold that are not transparent."""
        count: int = self.page.evaluate(
            """(selector) => [...document.querySelectorAll(selector + ' canvas')].reduce((sum, canvas) => {
                if (!canvas.width || !canvas.height) return sum;
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                let painted = 0;
                for (let i = 3; i < data.length; i += 4) painted += data[i] > 0;
                return sum + painted;
            }, 0)""",
            selector,
        )
        return count


_READY = """(path) => {
    const current = window.jupyterapp?.shell?.currentWidget;
    const isThis = current?.context?.path?.endsWith(path);
    return isThis && current.sessionContext?.session?.kernel?.status === 'idle' && current.content?.widgets?.length > 0;
}"""

_CLOSE = """async () => {
    const current = window.jupyterapp.shell.currentWidget;
    await current.sessionContext.shutdown();
    current.dispose();
}"""

_DONE = """() => {
    const widgets = window.jupyterapp.shell.currentWidget.content.widgets;
    const cells = widgets.filter(cell => cell.model.type === 'code' && cell.model.sharedModel.source.trim());
    const isDone = cell => cell.inputArea.promptNode.textContent.match(/\\[\\d+\\]/);
    return cells.every(cell => cell.model.executionCount !== null && isDone(cell));
}"""

_ASK = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const future = kernel.requestExecute({ code, silent: false, store_history: false });
    let printed = '';
    future.onIOPub = (message) => { printed += message.content.text ?? message.content.evalue ?? ''; };
    await future.done;
    return printed;
}"""
