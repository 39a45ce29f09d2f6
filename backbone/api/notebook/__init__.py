"""What is seen: the live table, the chart, progress and the dashboard.

Each view is built on a narrow pull seam, a callable that returns plain data, and has four faces: a one-line
``repr``, a text, a static HTML (for GitHub, VS Code and mail), and a widget that updates in place. `view`
holds what they share: when a view is refreshed, by whom, and how long it lives. ipywidgets, anywidget and
IPython are imported only when a view is shown in a notebook.
"""

from __future__ import annotations
