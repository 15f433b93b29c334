"""What Dagster's chart makes of deploy/kubernetes/values.yaml: ``python -m nbia_pipeline_tests.deploy.render CHART``.

It needs Helm and a copy of the chart, which the tests cannot count on. So what concerns our runs is kept in
``rendered.json``, with a digest of the values that it was made of: a test notices where they were changed since.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

VALUES = Path(__file__).parent.parent.parent / "deploy" / "kubernetes" / "values.yaml"
RENDERED = Path(__file__).parent / "rendered.json"
CONTEXT = "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"


def digest_of_values() -> str:
    """Return a digest of what the values say, comments aside."""
    return hashlib.sha256(json.dumps(yaml.safe_load(VALUES.read_text()), sort_keys=True).encode()).hexdigest()


def render(chart: Path) -> dict[str, Any]:
    """Return what Helm makes of the values: the instance, and the environment of the code server.

    Raises:
        CalledProcessError: the chart's schema or a template refuses the values.
    """
    words = ["helm", "template", "nbia", str(chart), "--namespace", "nbia", "--values", str(VALUES)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    made = [document for document in yaml.safe_load_all(done.stdout) if document]
    (instance,) = (d["data"]["dagster.yaml"] for d in made if d["metadata"]["name"] == "nbia-dagster-instance")
    (server,) = (d for d in made if d["kind"] == "Deployment" and d["metadata"]["name"].endswith("-nbia"))
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (context,) = (json.loads(each["value"]) for each in container["env"] if each["name"] == CONTEXT)
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["version"]
    return {
        "chart": version,
        "values": digest_of_values(),
        "kinds": sorted(f"{d['kind']} {d['metadata']['name']}" for d in made),
        "image": container["image"],
        "args": container["args"],
        "context": context,
        "instance": yaml.safe_load(instance),
    }


if __name__ == "__main__":
    RENDERED.write_text(json.dumps(render(Path(sys.argv[1])), indent=1) + "\n")
