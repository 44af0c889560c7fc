"""Stands in for Grafana in compose.yaml's third container, where no Grafana can be had.

It reads what compose.yaml provisions, from where Grafana would: the data source, the place of the dashboards, and every
dashboard there. GET on port 3000 asks all queries of the panels at the data source's URL, and answers with how many
series each has. It draws nothing.
"""

import http.server
import json
import pathlib
import re
import urllib.parse
import urllib.request

PROVISIONING = pathlib.Path("/etc/grafana/provisioning")
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}


def setting(directory: str, key: str) -> str:
    """The one setting of this name in the files of a directory of provisioning."""
    (found,) = [line.partition(":")[2].strip() for file in (PROVISIONING / directory).glob("*.yml")
                for line in file.read_text().splitlines() if re.match(rf"\s*{key}:", line)]  # fmt: skip
    return found


def series(expression: str) -> int:
    """How many series a panel's query has now."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{setting('datasources', 'url')}/api/v1/query?{query}", timeout=20) as answer:
        return len(json.load(answer)["data"]["result"])


def dashboards() -> dict[str, dict[str, int]]:
    """Each dashboard's title, with the series of each of its queries."""
    return {
        board["title"]: {target["expr"]: series(target["expr"])
                         for panel in board["panels"] for target in panel.get("targets", ())}
        for file in pathlib.Path(setting("dashboards", "path")).glob("*.json")
        for board in [json.loads(file.read_text())]
    }  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the dashboards have now."""

    def do_GET(self) -> None:
        """Any path."""
        body = json.dumps(dashboards()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
