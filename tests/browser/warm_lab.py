"""``python -m tests.browser.warm_lab``: JupyterLab, whose kernels are forked from one process that has imported."""

from __future__ import annotations

import os
from unittest import mock

if __name__ == "__main__":  # what forks imports this module as well
    from jupyterlab.labapp import main

    from tests import warm

    if hasattr(os, "fork"):
        with mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", warm.launch):
            main()
    else:
        main()
